"""Warnings about a non-finite loss and a collapsing codebook."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from tilewright.callbacks import LastCheckpoint, TrainingHealth


class Model(pl.LightningModule):
    """Model of one weight with a given loss for each update."""

    def __init__(self, losses, codebook_use=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))
        self.losses = losses
        self.codebook_use = codebook_use

    def training_step(self, batch, index):
        return self.weight * self.losses[self.global_step]

    def validation_step(self, batch, index):
        if self.codebook_use is not None:
            self.log("codebook/usage", self.codebook_use)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def train(module, health, *checkpoints, log_every_n_steps=1):
    trainer = pl.Trainer(
        max_steps=4,
        val_check_interval=2,
        callbacks=[health, *checkpoints],
        log_every_n_steps=log_every_n_steps,
        accelerator="cpu",
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=bool(checkpoints),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DataLoader(torch.zeros(4))
    trainer.fit(module, data, data)
    return trainer


def test_a_healthy_training_logs_the_gradient_norm_without_warnings(caplog):
    module = Model([3.0, 3.0, 3.0, 3.0], codebook_use=0.5)
    trainer = train(module, TrainingHealth(stop=True, codebook_grace_updates=0))
    assert trainer.callback_metrics["train/gradient_norm"] == 3
    assert trainer.global_step == 4
    assert "At update" not in caplog.text


def test_the_gradient_norm_is_that_of_the_update_that_loggers_write():
    trainer = train(Model([1.0, 2.0, 3.0, 4.0]), TrainingHealth(), log_every_n_steps=2)
    assert trainer.logged_metrics["train/gradient_norm"] == 4


@pytest.mark.parametrize(("stop", "steps"), [(False, 4), (True, 2)])
def test_a_non_finite_loss_warns_once_and_stops_if_asked(caplog, stop, steps):
    losses = [1.0, float("nan"), float("nan"), 1.0]
    health = TrainingHealth(stop=stop)
    trainer = train(Model(losses), health)
    assert caplog.text.count("the loss is not finite") == 1
    assert trainer.global_step == steps
    assert health.stopped_by == ("callbacks.health.stop" if stop else None)


def test_stopping_at_a_non_finite_loss_keeps_the_checkpoint_before_it(tmp_path):
    losses = [1.0, 1.0, float("nan"), 1.0]
    last = LastCheckpoint(tmp_path / "checkpoints")
    trainer = train(Model(losses), TrainingHealth(stop=True), last)
    assert trainer.global_step == 3
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 1  # before the validation that follows the second update
    assert saved["state_dict"]["weight"] == 1


@pytest.mark.parametrize(("grace", "warnings"), [(0, 1), (100, 0)])
def test_a_collapsing_codebook_warns_once_after_the_grace_updates(caplog, grace, warnings):
    train(Model([1.0] * 4, codebook_use=0.01), TrainingHealth(codebook_grace_updates=grace))
    assert caplog.text.count("the codebook collapses, with 1.0%") == warnings
