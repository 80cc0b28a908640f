"""HalveOnPlateau: number and time of the halvings, also after a resume."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from tilewright.callbacks import HalveOnPlateau
from tilewright.errors import UserError
from tilewright.training.optimizers import scheduled
from tilewright.training.schedules import Constant, WarmUp


class Model(pl.LightningModule):
    """Model with given validation losses, one per update."""

    def __init__(self, losses, rate):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))
        self.losses, self.rate, self.rates = losses, rate, []

    def on_train_batch_start(self, batch, index):
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    def training_step(self, batch, index):
        return self.weight * 0

    def validation_step(self, batch, index):
        loss = self.losses[self.global_step - 1]
        self.log_dict({"validation/loss": loss, "validation/half": loss / 2})

    def configure_optimizers(self):
        return scheduled(torch.optim.SGD(self.parameters(), lr=1.0), self.rate)


def learning_rates(losses, rate=None, checkpoint=None, save=None, **settings):
    """Returns the learning rate of each update of a training with these validation losses."""
    module = Model(losses, rate or Constant(0.8))
    settings = {"monitor": "validation/loss", "patience": 2, "min_delta": 0.01, **settings}
    callback = HalveOnPlateau(**settings)
    trainer = pl.Trainer(
        max_steps=len(losses),
        val_check_interval=1,
        check_val_every_n_epoch=None,
        callbacks=[callback],
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


def test_it_halves_after_patience_validations_without_a_new_minimum():
    losses = [1.0, 0.9, 0.895, 0.9, 0.8, 0.8, 0.8, 0.8]
    assert learning_rates(losses) == pytest.approx([0.8, 0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2])


def test_it_halves_at_most_max_halvings_times():
    assert learning_rates([1.0] * 9, max_halvings=2)[-1] == pytest.approx(0.2)


def test_a_falling_loss_does_not_change_the_schedule():
    warm_up = WarmUp(4, Constant(0.8))
    rates = learning_rates([1.0, 0.8, 0.6, 0.4, 0.2], warm_up)
    assert rates == pytest.approx([warm_up(step) for step in range(5)])


def test_a_resumed_training_keeps_the_rate_and_the_count(tmp_path):
    losses = [1.0] * 12
    uninterrupted = learning_rates(losses)
    learning_rates(losses[:6], save=tmp_path / "six.ckpt")
    resumed = learning_rates(losses, checkpoint=tmp_path / "six.ckpt")
    assert resumed == pytest.approx(uninterrupted[6:])


def test_a_resumed_training_with_another_metric_keeps_only_the_number_of_halvings(tmp_path):
    losses = [1.0, 1.0, 1.0, 1.0, 0.9, 0.8, 0.7, 0.7, 0.7]
    half = {"monitor": "validation/half", "max_halvings": 1}
    assert learning_rates(losses[:4], save=tmp_path / "four.ckpt", **half)[-1] == 0.4
    resumed = [
        learning_rates(losses, checkpoint=tmp_path / "four.ckpt", max_halvings=maximum, patience=1)
        for maximum in (1, 2)
    ]
    assert resumed == [pytest.approx([0.4] * 5), pytest.approx([0.4] * 4 + [0.2])]


def test_validations_of_the_warm_up_are_not_a_plateau():
    rates = learning_rates([1.0] * 8, grace_updates=4)
    assert rates == pytest.approx([0.8] * 6 + [0.4] * 2)  # after validations 5 and 6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_not_a_plateau(value):
    assert learning_rates([1.0, value, value, value, value, 1.0, 1.0])[-1] == pytest.approx(0.8)


def test_a_metric_that_rises_has_no_plateau():
    with pytest.raises(UserError, match=r"monitor=validation/psnr rises in a training"):
        HalveOnPlateau("validation/psnr")


def test_a_metric_that_is_not_measured_is_one_line():
    with pytest.raises(
        UserError, match=r"monitor=other .*: set one of validation/half, validation/loss"
    ):
        learning_rates([1.0], monitor="other")
