"""Progress bar and line of a training."""

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from tilewright.callbacks import ProgressLine, StepProgressBar


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(1.0))

    def training_step(self, batch, index):
        self.log("train/loss", 0.5)
        return self.weight

    def validation_step(self, batch, index):
        self.log("validation/loss", 0.25)
        if self.trainer.global_step == 2:
            self.log("validation/rare", 0.125)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def output_with(callback, capsys):
    trainer = pl.Trainer(
        max_steps=4,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        callbacks=[callback],
        accelerator="cpu",
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=isinstance(callback, StepProgressBar),
        enable_model_summary=False,
    )
    trainer.fit(Model(), DataLoader(range(10)), DataLoader([0]))
    return capsys.readouterr().out


def test_the_bar_counts_all_batches_of_the_run(capsys):
    output = output_with(StepProgressBar(refresh_rate=1), capsys)
    assert "Training" in output
    assert "4/4" in output
    assert "Epoch" not in output


def test_a_log_file_has_lines_between_validations(capsys):
    lines = output_with(ProgressLine(seconds=0), capsys).splitlines()
    assert [line for line in lines if "train/loss" in line] == [
        f"step      {step}/4  train/loss 0.5" for step in (1, 2, 3, 4)
    ]


def test_each_validation_prints_a_line_with_its_metrics(capsys):
    lines = output_with(ProgressLine(), capsys).splitlines()
    assert [line for line in lines if line.startswith("step")] == [
        "step      2/4  loss 0.25  rare 0.125",
        "step      4/4  loss 0.25",
    ]
