"""Order of callbacks, and the end of a training."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from tilewright.callbacks import AveragedWeights, LastCheckpoint
from tilewright.training import Trainer

HOOKS = ("on_validation_start", "on_validation_epoch_end", "on_validation_end")


class CountingModel(pl.LightningModule):
    """Model of one weight, which equals n after n updates."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return -self.weight

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


class WeightRecorder(pl.Callback):
    """Records the model's weight in each validation hook."""

    def __init__(self):
        self.weights = {}

    def on_validation_start(self, trainer, pl_module):
        self.weights["on_validation_start"] = pl_module.weight.item()

    def on_validation_epoch_end(self, trainer, pl_module):
        self.weights["on_validation_epoch_end"] = pl_module.weight.item()

    def on_validation_end(self, trainer, pl_module):
        self.weights["on_validation_end"] = pl_module.weight.item()


class RecordingCheckpoint(WeightRecorder, pl.callbacks.ModelCheckpoint):
    """A checkpoint callback, which Lightning moves to the end of the list."""

    def __init__(self, folder):
        pl.callbacks.ModelCheckpoint.__init__(self, folder, "after_all", every_n_train_steps=1000)
        self.weights = {}


class TrainedWeight(pl.Callback):
    """Records the trained weight at the end of each training step."""

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.weight = pl_module.weight.item()


def fit(folder, callbacks, steps=4, **arguments):
    rows = DataLoader(TensorDataset(torch.zeros(100)), batch_size=1)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"val_check_interval": 3, "limit_val_batches": 1, **arguments},
        num_sanity_val_steps=0,
        callbacks=callbacks,
    )
    trainer.fit(CountingModel(), rows, rows)
    return trainer


@pytest.mark.parametrize("position", ["before", "after"])
def test_callbacks_see_averaged_weights_wherever_the_config_lists_them(tmp_path, position):
    # The average moves after the first of 4 updates only, so it equals 1 in the validation.
    average = AveragedWeights(decay=0.9, every_n_updates=5)
    recorder, trained = WeightRecorder(), TrainedWeight()
    listed = [recorder, average] if position == "before" else [average, recorder]
    fit(tmp_path, [*listed, trained, LastCheckpoint(str(tmp_path))])
    assert recorder.weights == dict.fromkeys(HOOKS, 1.0)
    assert trained.weight == 4.0  # training goes on from the trained weights


def test_checkpoint_callbacks_see_averaged_weights(tmp_path):
    recorder = RecordingCheckpoint(tmp_path)
    fit(tmp_path, [recorder, AveragedWeights(decay=0.9, every_n_updates=5)])
    assert recorder.weights == dict.fromkeys(HOOKS, 1.0)


@pytest.mark.parametrize("average_first", [True, False])
def test_a_checkpoint_written_during_a_validation_holds_both_weights(tmp_path, average_first):
    callbacks = [LastCheckpoint(str(tmp_path)), AveragedWeights(decay=0.9, every_n_updates=5)]
    fit(tmp_path, callbacks[::-1] if average_first else callbacks, steps=3)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    assert saved["state_dict"]["weight"] == 1
    assert saved["current_model_state"]["weight"] == 3


class StopAfter(pl.Callback):
    """Requests the end of the training after a number of batches, as a time limit does."""

    def __init__(self, batches):
        self.batches = batches

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.should_stop or batch_idx + 1 == self.batches


class ValidatedSteps(pl.Callback):
    """Records the number of updates before each validation."""

    def __init__(self):
        self.steps = []

    def on_validation_end(self, trainer, pl_module):
        self.steps.append(trainer.global_step)


@pytest.mark.parametrize(
    ("steps", "interval", "validated"), [(6, 3, [3, 6]), (7, 3, [3, 6, 7]), (4, 100, [4])]
)
def test_a_validation_follows_the_last_update(tmp_path, steps, interval, validated):
    recorder = ValidatedSteps()
    callbacks = [recorder, LastCheckpoint(str(tmp_path))]
    fit(tmp_path, callbacks, steps, val_check_interval=interval)
    assert recorder.steps == validated
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == steps


@pytest.mark.parametrize(
    ("arguments", "stopped"),
    [
        ({}, 5),
        ({"accumulate_grad_batches": 3}, 2),  # after batch 6
        ({"min_steps": 8}, 8),
        ({"limit_val_batches": 0}, 5),
        ({"accumulate_grad_batches": 3, "limit_val_batches": 0}, 2),
    ],
)
def test_a_training_that_stops_early_leaves_its_last_update(tmp_path, arguments, stopped):
    recorder = ValidatedSteps()
    callbacks = [StopAfter(5), recorder, LastCheckpoint(str(tmp_path))]
    trainer = fit(tmp_path, callbacks, steps=30, val_check_interval=100, **arguments)
    assert trainer.global_step == stopped
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == stopped
    assert recorder.steps == ([] if "limit_val_batches" in arguments else [stopped])


def test_a_time_limit_ends_a_training_and_can_be_raised(tmp_path):
    callbacks = [LastCheckpoint(str(tmp_path))]
    trainer = fit(tmp_path, callbacks, steps=10**6, max_time={"milliseconds": 300})
    assert 0 < trainer.global_step < 10**6
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["global_step"] == trainer.global_step
