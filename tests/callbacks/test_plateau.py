"""The learning rate is halved on plateaus, so many times and no more, and resumes where it was."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from tilewright.callbacks.plateau import HalveOnPlateau
from tilewright.training.optimizers import scheduled
from tilewright.training.schedules import Constant, WarmUp


class Line(pl.LightningModule):
    """A model whose validation's figures are given, one for each update."""

    def __init__(self, figures, rate):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))
        self.figures, self.rate, self.rates = figures, rate, []

    def on_train_batch_start(self, batch, index):
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    def training_step(self, batch, index):
        return self.weight * 0

    def validation_step(self, batch, index):
        self.log("validation/loss", self.figures[self.global_step - 1])

    def configure_optimizers(self):
        return scheduled(torch.optim.SGD(self.parameters(), lr=1.0), self.rate)


def train(figures, plateau, rate=None, checkpoint=None, save=None):
    module = Line(figures, rate or Constant(0.8))
    trainer = pl.Trainer(
        max_steps=len(figures),
        val_check_interval=1,
        check_val_every_n_epoch=None,
        callbacks=[plateau],
        accelerator="cpu",
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(range(100)), DataLoader([0]), ckpt_path=checkpoint)
    if save:
        trainer.save_checkpoint(save)
    return module.rates


def plateau(**settings):
    return HalveOnPlateau("validation/loss", patience=2, least=0.01, **settings)


def test_it_halves_after_so_many_validations_without_a_lower_figure():
    figures = [1.0, 0.9, 0.895, 0.9, 0.8, 0.8, 0.8, 0.8]
    rates = train(figures, plateau())
    assert rates == pytest.approx([0.8, 0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2])


def test_it_halves_so_many_times():
    assert train([1.0] * 9, plateau(times=2))[-1] == pytest.approx(0.2)


def test_a_falling_figure_leaves_the_schedule_alone():
    warm = WarmUp(4, Constant(0.8))
    rates = train([1.0, 0.8, 0.6, 0.4, 0.2], plateau(), warm)
    assert rates == pytest.approx([warm(step) for step in range(5)])


def test_a_resumed_training_keeps_its_rate_and_its_patience(tmp_path):
    figures = [1.0] * 12
    whole = train(figures, plateau())
    train(figures[:6], plateau(), save=tmp_path / "six.ckpt")
    resumed = train(figures, plateau(), checkpoint=tmp_path / "six.ckpt")
    assert resumed == pytest.approx(whole[6:])
