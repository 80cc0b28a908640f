"""OverfittingCheck: the warning, the end of the training, and resuming."""

import math

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from pytorch_lightning.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from tilewright.callbacks import OverfittingCheck
from tilewright.configs import instantiate
from tilewright.errors import UserError
from tilewright.program import CONF
from tilewright.training.loggers import StepTensorBoardLogger

TURNING = [2.0, 1.5, 1.6, 1.7, 1.8, 1.9]  # best at the second validation, worse at three more
FALLING = [2.0, 1.5, 1.2, 1.0, 0.8, 0.6]
WARNING = (
    "At update 5 the model overfits: validation/loss rises from 1.5 at update 2 to 1.8, while "
    "train/loss falls from 1.5 to 0.8. "
)
BEST = "best.ckpt holds the best weights. "
REMEDIES = "with more images, more augmentation or a smaller model"
GO_ON = "Stop the run, or set callbacks.overfitting.stop=true. Then start a new one " + REMEDIES


class Model(pl.LightningModule):
    """Model with given losses, one per update. Each update is followed by a validation."""

    def __init__(self, monitor, training, validation):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))
        self.monitor, self.training_losses, self.validation_losses = monitor, training, validation

    def training_step(self, batch, index):
        self.log("train/loss", self.training_losses[self.global_step])
        return self.weight * 0

    def validation_step(self, batch, index):
        self.log(self.monitor, self.validation_losses[self.global_step - 1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def train(
    folder,
    validation=TURNING,
    training=FALLING,
    monitor="validation/loss",
    mode="min",
    steps=None,
    checkpoint=None,
    logger=False,
    best_monitor="validation/loss",
    **settings,
):
    """Trains to `steps` updates, and returns the trainer and the callback.

    Args:
        monitor: metric of the check.
        best_monitor: metric of the best checkpoint. None keeps no best checkpoint.
    """
    overfitting = OverfittingCheck(monitor, mode, **settings)
    best = ModelCheckpoint(folder, "best", monitor=best_monitor, enable_version_counter=False)
    trainer = pl.Trainer(
        max_steps=steps or len(validation),
        val_check_interval=1,
        check_val_every_n_epoch=None,
        callbacks=[overfitting, best],
        accelerator="cpu",
        num_sanity_val_steps=0,
        logger=logger,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Model(monitor, training, validation)
    trainer.fit(module, DataLoader(range(100)), DataLoader([0]), ckpt_path=checkpoint)
    return trainer, overfitting


def warnings(caplog):
    return [text for text in caplog.messages if "overfits" in text]


def test_a_turned_validation_loss_warns_once(tmp_path, caplog):
    trainer, overfitting = train(tmp_path)
    [warning] = warnings(caplog)
    assert warning == WARNING + BEST + GO_ON
    assert trainer.global_step == 6
    assert overfitting.stopped_by is None


def test_the_warning_is_a_text_in_tensorboard(tmp_path):
    train(tmp_path, logger=StepTensorBoardLogger(tmp_path, name="", version=""))
    events = EventAccumulator(str(tmp_path)).Reload()
    [event] = events.Tensors("warnings/overfitting/text_summary")
    assert event.step == 5
    assert event.tensor_proto.string_val[0].decode() == WARNING + BEST + GO_ON


@pytest.mark.parametrize(
    ("validation", "training"),
    [
        (FALLING, FALLING),
        (TURNING, TURNING),  # diverges
        ([2.0, 1.5, 1.502, 1.504, 1.502, 1.504], FALLING),  # a plateau
        ([2.0, 1.5, 1.6, 1.7, 1.4, 1.5], FALLING),  # a new minimum
        ([2.0, 1.5, 1.6, math.nan, math.nan, math.nan], FALLING),
    ],
)
def test_other_curves_do_not_warn(tmp_path, caplog, validation, training):
    trainer, _ = train(tmp_path, validation, training, stop=True)
    assert not warnings(caplog)
    assert trainer.global_step == 6


@pytest.mark.parametrize("zero", [0.0, 1.5, 1.4, -100.0])
def test_the_zero_of_the_metric_does_not_matter(tmp_path, caplog, zero):
    plateau = [2.0, 1.5, 1.502, 1.504, 1.502, 1.504]
    train(tmp_path / "plateau", [value - zero for value in plateau])
    assert not warnings(caplog)
    train(tmp_path / "turning", [value - zero for value in TURNING])
    assert len(warnings(caplog)) == 1


def test_a_first_validation_without_a_value_does_not_count(tmp_path, caplog):
    train(tmp_path, [math.nan, *TURNING[:5]])
    assert len(warnings(caplog)) == 1


def test_a_run_without_a_best_checkpoint_is_checked(tmp_path, caplog):
    train(tmp_path, best_monitor=None)
    assert warnings(caplog) == [WARNING + GO_ON]


def test_stop_ends_the_training_at_the_turn(tmp_path, caplog):
    trainer, overfitting = train(tmp_path, stop=True)
    assert trainer.global_step == 5
    assert overfitting.stopped_by == "callbacks.overfitting.stop"
    stops = f"The run stops here: start a new one {REMEDIES}"
    assert warnings(caplog) == [WARNING + BEST + stops]


def test_a_metric_that_rises_turns_when_it_falls(tmp_path, caplog):
    values = [20.0, 24.0, 23.0, 22.0, 21.0, 20.0]
    train(tmp_path, values, monitor="validation/psnr", mode="max", best_monitor=None)
    [warning] = warnings(caplog)
    assert "validation/psnr falls from 24 at update 2 to 21, while train/loss falls" in warning


@pytest.mark.parametrize(("first", "resumed"), [(4, 1), (5, 0)])
def test_a_resumed_training_warns_once_in_all(tmp_path, caplog, first, resumed):
    trainer, _ = train(tmp_path, steps=first)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    caplog.clear()
    train(tmp_path, checkpoint=tmp_path / "last.ckpt")
    assert [text.startswith(WARNING) for text in warnings(caplog)] == [True] * resumed


def test_a_resumed_training_measures_the_improvement_from_its_start(tmp_path, caplog):
    plateau = [2.0, 1.5, 1.502, 1.504, 1.502, 1.504]
    trainer, _ = train(tmp_path, plateau, steps=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    train(tmp_path, plateau, checkpoint=tmp_path / "last.ckpt")
    assert not warnings(caplog)


def test_a_checkpoint_of_an_earlier_version_warns_too(tmp_path, caplog):
    trainer, overfitting = train(tmp_path, steps=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del saved["callbacks"][overfitting.state_key]["first"]
    torch.save(saved, tmp_path / "last.ckpt")
    train(tmp_path, checkpoint=tmp_path / "last.ckpt")
    assert warnings(caplog) == [WARNING + BEST + GO_ON]


def test_a_resumed_training_with_another_metric_starts_the_check_again(tmp_path, caplog):
    losses = {"validation": [*TURNING, *TURNING], "training": [*FALLING, *FALLING]}
    trainer, _ = train(tmp_path, **losses, steps=6)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    caplog.clear()
    other = {"monitor": "validation/mean", "best_monitor": None}
    train(tmp_path, **losses, **other, checkpoint=tmp_path / "last.ckpt")
    [warning] = warnings(caplog)
    assert warning.startswith(
        "At update 11 the model overfits: validation/mean rises from 1.5 at update 8 to 1.8"
    )


def test_a_resumed_training_stops_if_it_is_told_to_after_the_warning(tmp_path):
    trainer, _ = train(tmp_path, steps=5)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    losses = {"validation": [*TURNING, 2.0, 2.1], "training": [*FALLING, 0.5, 0.4]}
    trainer, _ = train(tmp_path, **losses, checkpoint=tmp_path / "last.ckpt", stop=True)
    assert trainer.global_step == 6


@pytest.mark.parametrize(
    ("settings", "mode"),
    [
        ([], "min"),
        (["callbacks.best.mode=max"], "max"),
        (["callbacks.best=null"], "min"),
    ],
)
def test_the_direction_is_that_of_the_best_checkpoint(settings, mode):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["stage=dvae", "run=x", "monitor=own", *settings])
    check = instantiate(config.callbacks.overfitting)
    assert (check.monitor, check.mode) == ("own", mode)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "lowest"}, "callbacks.overfitting.mode=lowest is not possible: set one of min"),
        ({"mode": "max"}, "best at its minimum: set callbacks.overfitting.mode=min"),
        ({"stop": 1}, "callbacks.overfitting.stop=1 is not possible"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        OverfittingCheck("validation/loss", **settings)
