"""The average of the weights: how it warms up, when it moves, and that it is what is kept."""

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from tilewright.callbacks.checkpoints import LastCheckpoint
from tilewright.callbacks.ema import AveragedWeights


class Walk(pl.LightningModule):
    """One weight whose gradient is -1: with SGD of rate 1 it is n after n updates."""

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


def walk(folder, steps, resume=None, **arguments):
    rows = DataLoader(TensorDataset(torch.zeros(100)), batch_size=1)
    trainer = pl.Trainer(
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
    model = Walk()
    trainer.fit(model, rows, rows, ckpt_path=resume)
    return trainer, model


def expected(steps, decay, every=1):
    """The average by hand: it begins as a copy of the weights at its first update."""
    average, updates = 0.0, 0
    for step in range(1, steps + 1):
        if (step - 1) % every == 0:
            kept = min(decay, (1 + updates) / (10 + updates))
            average = float(step) if updates == 0 else kept * average + (1 - kept) * step
            updates += 1
    return average


@pytest.mark.parametrize(("decay", "every"), [(0.998, 1), (0.3, 1), (0.998, 4)])
def test_average_warms_up_and_moves_every_so_often(tmp_path, decay, every):
    _, model = walk(tmp_path, 12, decay=decay, every=every)
    assert model.weight.item() == pytest.approx(expected(12, decay, every), rel=1e-5)


def test_validation_sees_the_average(tmp_path):
    _, model = walk(tmp_path, 12, decay=0.998)
    assert model.validated[-1] == pytest.approx(expected(12, 0.998), rel=1e-5)
    assert model.validated[-1] < 12


def test_checkpoint_holds_the_average_and_resumes_both(tmp_path):
    walk(tmp_path, 6, decay=0.998)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert float(saved["state_dict"]["weight"]) == pytest.approx(expected(6, 0.998), rel=1e-5)
    assert float(saved["current_model_state"]["weight"]) == 6
    _, resumed = walk(tmp_path, 12, resume=tmp_path / "last.ckpt", decay=0.998)
    assert resumed.weight.item() == pytest.approx(expected(12, 0.998), rel=1e-5)


def test_should_update_counts_updates():
    average = AveragedWeights(0.9, every=25)
    assert [step for step in range(100) if average.should_update(step)] == [0, 25, 50, 75]
    assert not average.should_update(epoch_idx=25)


def test_a_run_of_fewer_updates_than_every_is_not_lost(tmp_path):
    """It once held the weights of before the training."""
    walk(tmp_path, 3, decay=0.99, every=5)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert float(saved["state_dict"]["weight"]) == 1
