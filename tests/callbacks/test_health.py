"""Trouble in a training, told once, and the end of it where that is wanted."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from tilewright.callbacks.health import Health


class Line(pl.LightningModule):
    """A model of one weight whose loss is what `losses` says."""

    def __init__(self, losses, use=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))
        self.losses = losses
        self.use = use

    def training_step(self, batch, index):
        return self.weight * self.losses[self.global_step]

    def validation_step(self, batch, index):
        if self.use is not None:
            self.log("codebook/usage", self.use)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def train(module, health, steps=4):
    trainer = pl.Trainer(
        max_steps=steps,
        val_check_interval=2,
        callbacks=[health],
        log_every_n_steps=1,
        accelerator="cpu",
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DataLoader(torch.zeros(4))
    trainer.fit(module, data, data)
    return trainer


def test_a_healthy_training_says_nothing_and_logs_the_gradient(caplog):
    trainer = train(Line([3.0, 3.0, 3.0, 3.0], use=0.5), Health(stop=True, grace=0))
    assert trainer.callback_metrics["train/gradient_norm"] == 3
    assert trainer.global_step == 4
    assert "At update" not in caplog.text


@pytest.mark.parametrize(("stop", "steps"), [(False, 4), (True, 2)])
def test_a_loss_that_is_no_number(caplog, stop, steps):
    trainer = train(Line([1.0, float("nan"), float("nan"), 1.0]), Health(stop=stop))
    assert caplog.text.count("the loss is no longer a finite number") == 1
    assert trainer.global_step == steps


@pytest.mark.parametrize(("grace", "told"), [(0, 1), (100, 0)])
def test_a_codebook_that_collapses(caplog, grace, told):
    train(Line([1.0] * 4, use=0.01), Health(grace=grace))
    assert caplog.text.count("the codebook collapses, 1.0%") == told
