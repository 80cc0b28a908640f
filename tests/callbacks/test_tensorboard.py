"""TensorBoardOverview: settings, best metric and charts of a run."""

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from torch.utils.data import DataLoader

from tilewright import runs
from tilewright.callbacks import TensorBoardOverview
from tilewright.training.loggers import AppendingCSVLogger, StepTensorBoardLogger
from tilewright.training.optimizers import scheduled
from tilewright.training.schedules import Cosine
from tilewright.training.stage import StageModule

LOSSES = [3.0, 1.0, 2.0]  # one per validation
CONFIG = {
    "stage": "dvae",
    "choices": {"stage": "dvae", "data": "shapes", "model": "dvae_small"},
    "overrides": [
        "stage=dvae",
        "model.beta.start=5e-1",
        "~metric",
        "paths.logs=x",
        "+a=[1]",
    ],
    "model": {"beta": {"start": 0.5, "end": 1.0}},
    "data": {"batch_size": 8},
    "seed": 0,
    "compile": True,
    "a": [1],
}


class Model(StageModule):
    def __init__(self):
        super().__init__()
        self.network = torch.nn.Linear(1, 1)
        self.network.block_types = ()

    def training_step(self, batch, index):
        loss = self.network(batch[:, None].float()).mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, index):
        self.log("validation/loss", LOSSES[self.global_step // 2 - 1])

    def configure_optimizers(self):
        groups = [{"params": [p]} for p in self.network.parameters()]
        return scheduled(torch.optim.SGD(groups, lr=1.0), Cosine(0.5, 0.1, 6))


def train(folder, mode="min", logger=StepTensorBoardLogger, config=CONFIG):
    """Trains a run named `a` and returns its folder."""
    folder = folder / "dvae" / "a"
    runs.create(folder, OmegaConf.create(config))
    keys = ["stage", "data", "model", "seed", "compile", "data.batch_size"]
    charts = {"loss": ["train/loss", "validation/loss"], "left out": None}
    overview = TensorBoardOverview(str(folder), keys, charts)
    best = pl.callbacks.ModelCheckpoint(folder / "x", monitor="validation/loss", mode=mode)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=6,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=logger(folder, name="", version=""),
        callbacks=[overview, best],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), DataLoader(range(20)), DataLoader([0]))
    return folder


def read(folder):
    return EventAccumulator(str(folder)).Reload()


@pytest.fixture
def events(tmp_path):
    return read(train(tmp_path))


def values(events, tag):
    return [event.value for event in events.Scalars(tag)]


def test_metrics_are_logged_without_the_epoch(events):
    assert set(events.Tags()["scalars"]) == {
        *("best/validation/loss", "schedule/learning_rate", "train/loss", "validation/loss"),
    }


def test_one_learning_rate_is_logged_for_all_groups(events):
    schedule = Cosine(0.5, 0.1, 6)
    assert values(events, "schedule/learning_rate") == pytest.approx(
        [schedule(n) for n in range(6)]
    )


def test_the_best_value_so_far_is_logged_at_each_validation(events):
    assert values(events, "validation/loss") == LOSSES
    assert values(events, "best/validation/loss") == [3.0, 1.0, 1.0]
    steps = [
        [event.step for event in events.Scalars(f"{tag}validation/loss")] for tag in ("", "best/")
    ]
    assert steps == [[2, 4, 6]] * 2


def test_the_highest_value_is_the_best_in_mode_max(tmp_path):
    events = read(train(tmp_path, mode="max"))
    assert values(events, "best/validation/loss") == [3.0, 3.0, 3.0]


def test_tensorboard_shows_each_run_once(tmp_path):
    train(tmp_path)
    shown = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Runs()
    assert list(shown) == ["dvae/a"]


def session(events, tag):
    plugin = events.SummaryMetadata(tag).plugin_data
    assert plugin.plugin_name == metadata.PLUGIN_NAME
    return plugin_data_pb2.HParamsPluginData.FromString(plugin.content)


def settings(events):
    begun = session(events, metadata.SESSION_START_INFO_TAG).session_start_info
    return {name: getattr(v, v.WhichOneof("kind")) for name, v in begun.hparams.items()}


def test_hparams_hold_the_listed_settings_and_those_of_the_command_line(events):
    assert settings(events) == {
        **{"stage": "dvae", "data": "shapes", "model": "dvae_small", "seed": 0, "compile": True},
        **{"data.batch_size": 8, "model.beta.start": 0.5, "metric": "None", "a": "[1]"},
    }
    assert session(events, metadata.SESSION_END_INFO_TAG).session_end_info.status == 1  # success
    assert metadata.EXPERIMENT_TAG not in events.Tags()["tensors"]


def test_a_resumed_run_replaces_its_settings_and_charts(tmp_path):
    train(tmp_path)
    events = read(train(tmp_path, config={**CONFIG, "seed": 7}))
    assert settings(events)["seed"] == 7
    assert len(events.Tensors("custom_scalars__config__")) == 1


def test_charts_are_in_a_category_of_the_stage(events):
    (event,) = events.Tensors("custom_scalars__config__")
    (category,) = Layout.FromString(event.tensor_proto.string_val[0]).category
    (chart,) = category.chart
    assert (category.title, chart.title) == ("dvae", "loss")
    assert list(chart.multiline.tag) == ["train/loss", "validation/loss"]


def test_other_loggers_are_not_touched(tmp_path):
    table = train(tmp_path, logger=AppendingCSVLogger) / "metrics.csv"
    header = table.read_text().splitlines()[0].split(",")
    assert set(header) == {"step", "train/loss", "validation/loss", "schedule/learning_rate"}
