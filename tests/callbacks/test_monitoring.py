"""Monitored metrics: their direction, and names that no validation measures."""

import pytest
import pytorch_lightning as pl

from helpers import tiny
from tilewright.callbacks import FrechetDistance, HalveOnPlateau, UpdateBoundaryCheckpoint
from tilewright.callbacks.monitoring import check_measured
from tilewright.errors import UserError
from tilewright.training import Trainer


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


@pytest.mark.parametrize("stage", ["dvae", "vq", "fsq", "adversarial", "prior", "ranker"])
def test_a_stage_declares_the_metrics_of_its_validations(stage, tmp_path):
    last = LastMetrics()
    tiny.train(stage, tmp_path, 2, extra_callbacks=[last], val_check_interval=2)
    assert sorted(last.declared) == sorted(last.logged)


def check_dvae(folder, *callbacks):
    module, _, measuring = tiny.make("dvae", folder)
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[*measuring, *callbacks])
    check_measured(trainer, module)


@pytest.mark.parametrize("monitor", ["foo", "validation/commitment", "validation/fid"])
def test_a_metric_that_is_not_measured_is_refused_before_the_training(monitor, tmp_path):
    callbacks = [HalveOnPlateau(monitor), FrechetDistance(every_n_validations=2)]
    with pytest.raises(UserError, match=rf"monitor={monitor} is not measured.* validation/kl, "):
        check_dvae(tmp_path, *callbacks)


def test_a_metric_of_a_callback_is_accepted(tmp_path):
    callbacks = [UpdateBoundaryCheckpoint(tmp_path, monitor="validation/fid"), FrechetDistance()]
    check_dvae(tmp_path, *callbacks)


def test_only_the_metric_of_the_chosen_network_is_accepted(tmp_path):
    callback = FrechetDistance(extractor="efficientnet_lite2")
    check_dvae(tmp_path, HalveOnPlateau("validation/fd_efficientnet_lite2"), callback)
    with pytest.raises(UserError, match=r"monitor=validation/fid .* validation/fd_\w+_lite2, "):
        check_dvae(tmp_path, HalveOnPlateau("validation/fid"), callback)


def test_a_metric_that_a_training_of_adapters_does_not_measure_is_refused(tmp_path):
    pytest.importorskip("peft")
    module, _, _ = tiny.make("lora", tmp_path)
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[HalveOnPlateau("foo")])
    with pytest.raises(UserError, match="monitor=foo is not measured"):
        check_measured(trainer, module)


class OwnMetric(pl.Callback):
    """Callback of a user, which may log anything."""


def test_any_metric_is_accepted_beside_a_callback_of_a_user(tmp_path):
    check_dvae(tmp_path, HalveOnPlateau("own"), OwnMetric())
