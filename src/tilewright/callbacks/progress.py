"""Progress of a training: a bar for terminals and a line per validation."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar
from torch import Tensor

from tilewright import program
from tilewright.checks import check_number
from tilewright.training.trainer import is_accumulating


class StepProgressBar(RichProgressBar):
    """Progress bar over all batches of a run.

    Lightning's own bar counts epochs, and after a resume only the remaining batches.
    """

    @property
    def total_train_batches(self) -> int | float:
        if self.trainer.max_steps < 0:
            return super().total_train_batches
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def _get_train_description(self, current_epoch: int) -> str:
        return f"{'Training':{len(self.validation_description)}}"


class ProgressLine(pl.Callback):
    """Prints the number of updates and the metrics after each validation.

    Without a terminal, which would show a bar, it also prints a line between validations.

    Args:
        seconds: time between these lines.

    Raises:
        UserError: the time is not possible.
    """

    def __init__(self, seconds: float = 60):
        check_number("callbacks.progress_line.seconds", seconds, 0)
        self.seconds = seconds
        self._printed = 0.0
        self._last: dict[str, Tensor] = {}  # metrics at the last validation

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._printed = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        waited = time.monotonic() - self._printed
        if waited >= self.seconds and not is_accumulating(trainer) and not sys.stdout.isatty():
            self._print(trainer, ("train/loss", "speed/"), trainer.callback_metrics)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        metrics = dict(trainer.callback_metrics)
        # Lightning keeps the values of earlier validations, for metrics of every Nth one.
        new = {name: value for name, value in metrics.items() if value is not self._last.get(name)}
        self._last = metrics
        self._print(trainer, ("validation/", "codebook/", "speed/"), new)

    def _print(
        self, trainer: pl.Trainer, names: tuple[str, ...], metrics: Mapping[str, Tensor]
    ) -> None:
        """Prints a line with the metrics whose names begin with one of `names`."""
        self._printed = time.monotonic()
        metrics = {
            name.removeprefix("validation/"): value
            for name, value in metrics.items()
            if name.startswith(names)
        }
        line = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        try:
            trainer.print(f"step {trainer.global_step:>6}/{trainer.max_steps}  {line}")
        except (BrokenPipeError, SystemExit):  # rich turns a broken pipe into SystemExit
            program.discard_stdout()  # the training continues without output
