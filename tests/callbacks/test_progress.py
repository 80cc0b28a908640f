"""What a training prints of how far it has come."""

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from tilewright.callbacks.progress import Bar, ProgressLine


class Line(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))

    def training_step(self, batch, index):
        return self.weight

    def validation_step(self, batch, index):
        self.log("validation/loss", 0.25)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def printed(capsys, callback):
    trainer = pl.Trainer(
        max_steps=4,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        callbacks=[callback],
        accelerator="cpu",
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=isinstance(callback, Bar),
        enable_model_summary=False,
    )
    trainer.fit(Line(), DataLoader(range(10)), DataLoader([0]))
    return capsys.readouterr().out


def test_the_bar_counts_the_runs_steps(capsys):
    out = printed(capsys, Bar(refresh_rate=1))
    assert "Training" in out
    assert "4/4" in out
    assert "Epoch" not in out


def test_a_line_for_each_validation(capsys):
    lines = printed(capsys, ProgressLine()).splitlines()
    assert [line for line in lines if line.startswith("step")] == [
        "step      2/4  loss 0.25",
        "step      4/4  loss 0.25",
    ]
