"""Monitored metrics: their direction, and names that no validation measures."""

import pytest
import pytorch_lightning as pl

from helpers import tiny
from tilewright.callbacks import FrechetDistance, HalveOnPlateau, UpdateBoundaryCheckpoint
from tilewright.dvae.module import DiscreteVAEModule
from tilewright.errors import UserError


@pytest.mark.parametrize(
    ("monitor", "mode", "way_out"),
    [
        ("validation/psnr", "min", "callbacks.best.mode=max"),
        ("retrieval/caption_to_image_r@1", "min", "callbacks.best.mode=max"),
        ("alignment/validation/one object", "min", "callbacks.best.mode=max"),
        ("validation/loss", "max", "callbacks.best.mode=min"),
        ("validation/fd_efficientnet_lite0", "max", "callbacks.best.mode=min"),
    ],
)
def test_the_worst_checkpoint_is_not_saved_as_the_best(monitor, mode, way_out, tmp_path):
    with pytest.raises(UserError, match=way_out):
        UpdateBoundaryCheckpoint(tmp_path, monitor=monitor, mode=mode)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_metric_of_a_user_may_have_either_direction(mode, tmp_path):
    assert UpdateBoundaryCheckpoint(tmp_path, monitor="mine/score", mode=mode).mode == mode


class LastMetrics(pl.Callback):
    """Keeps the names of the metrics of a validation, and those that its parts declare."""

    def on_validation_end(self, trainer, pl_module):
        self.logged = [
            name
            for name in trainer.callback_metrics
            if not name.startswith(("train/", "schedule/"))
        ]
        parts = [pl_module, *trainer.callbacks]
        self.declared = [name for part in parts for name in getattr(part, "validation_metrics", ())]


@pytest.mark.parametrize("stage", ["dvae", "vq", "fsq", "prior", "ranker"])
def test_a_stage_declares_the_metrics_of_its_validations(stage, tmp_path):
    last = LastMetrics()
    tiny.train(stage, tmp_path, 2, extra_callbacks=[last], val_check_interval=2)
    assert sorted(last.declared) == sorted(last.logged)


class OwnMetric(pl.Callback):
    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("own", 1.0)


def train_dvae(folder, monitor, *callbacks):
    best = UpdateBoundaryCheckpoint(folder / "checkpoints", "best", monitor=monitor)
    tiny.train("dvae", folder, 2, extra_callbacks=[best, *callbacks])


@pytest.fixture
def no_update(monkeypatch):
    def training_step(*args):
        raise AssertionError("the training has begun")

    monkeypatch.setattr(DiscreteVAEModule, "training_step", training_step)


@pytest.mark.parametrize("monitor", ["foo", "validation/commitment", "validation/fid"])
def test_a_metric_that_is_not_measured_ends_the_run_at_its_start(monitor, no_update, tmp_path):
    with pytest.raises(UserError, match=rf"monitor={monitor} is not measured.* validation/kl, "):
        train_dvae(tmp_path, monitor, FrechetDistance(every_n_validations=2))


def test_a_plateau_of_a_metric_that_is_not_measured_ends_the_run(no_update, tmp_path):
    with pytest.raises(UserError, match=r"monitor=foo is not measured.* validation/loss"):
        tiny.train("dvae", tmp_path, 2, callbacks=[HalveOnPlateau("foo")])


def test_a_metric_of_a_callback_of_a_user_is_accepted(tmp_path):
    train_dvae(tmp_path, "own", OwnMetric())
    assert (tmp_path / "checkpoints" / "best.ckpt").exists()
