"""AveragedWeights: warm-up, updates, and use in validations and checkpoints."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from tilewright.callbacks import AveragedWeights, LastCheckpoint
from tilewright.errors import UserError
from tilewright.training import Trainer


class CountingModel(pl.LightningModule):
    """Model of one weight, which equals n after n updates."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.validated = []

    def training_step(self, batch, batch_idx):
        return -self.weight

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.weight.item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


def fit(folder, steps, resume=None, **arguments):
    rows = DataLoader(TensorDataset(torch.zeros(100)), batch_size=1)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        val_check_interval=steps,
        check_val_every_n_epoch=None,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        callbacks=[AveragedWeights(**arguments), LastCheckpoint(str(folder))],
    )
    model = CountingModel()
    trainer.fit(model, rows, rows, ckpt_path=resume)
    return trainer, model


def expected(steps, decay, every_n_updates=1):
    """Computes the average by hand. Its first update copies the weights."""
    average, updates = 0.0, 0
    for step in range(1, steps + 1):
        if (step - 1) % every_n_updates == 0:
            share = min(decay, (1 + updates) / (10 + updates))
            average = float(step) if updates == 0 else share * average + (1 - share) * step
            updates += 1
    return average


@pytest.mark.parametrize(("decay", "every_n_updates"), [(0.998, 1), (0.3, 1), (0.998, 4)])
def test_the_average_warms_up_and_moves_every_n_updates(tmp_path, decay, every_n_updates):
    _, model = fit(tmp_path, 12, decay=decay, every_n_updates=every_n_updates)
    assert model.weight.item() == pytest.approx(expected(12, decay, every_n_updates), rel=1e-5)


def test_a_validation_uses_the_average(tmp_path):
    _, model = fit(tmp_path, 12, decay=0.998)
    assert model.validated[-1] == pytest.approx(expected(12, 0.998), rel=1e-5)
    assert model.validated[-1] < 12


def test_a_checkpoint_holds_the_average_and_resumes_both_weights(tmp_path):
    fit(tmp_path, 6, decay=0.998)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert float(saved["state_dict"]["weight"]) == pytest.approx(expected(6, 0.998), rel=1e-5)
    assert float(saved["current_model_state"]["weight"]) == 6
    _, resumed = fit(tmp_path, 12, resume=tmp_path / "last.ckpt", decay=0.998)
    assert resumed.weight.item() == pytest.approx(expected(12, 0.998), rel=1e-5)


def test_the_first_update_and_every_25th_after_it_move_the_average():
    average = AveragedWeights(0.9, every_n_updates=25)
    assert [step for step in range(100) if average.should_update(step)] == [0, 25, 50, 75]
    assert not average.should_update(epoch_idx=25)


def test_a_run_shorter_than_every_n_updates_keeps_its_first_update(tmp_path):
    fit(tmp_path, 3, decay=0.99, every_n_updates=5)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert float(saved["state_dict"]["weight"]) == 1


def test_lightnings_own_trainer_is_a_user_error(tmp_path):
    trainer = pl.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_progress_bar=False,
        callbacks=[AveragedWeights(0.9)],
    )
    with pytest.raises(UserError, match=r"use tilewright\.training\.Trainer"):
        trainer.fit(CountingModel(), DataLoader(TensorDataset(torch.zeros(3))))
