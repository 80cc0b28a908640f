"""Progress of a training: a bar for terminals and a line per validation."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar

from tilewright import program


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
    """Prints the number of updates and the metrics after each validation."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        metrics = {
            name.removeprefix("validation/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("validation/", "codebook/", "speed/"))
        }
        line = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        try:
            trainer.print(f"step {trainer.global_step:>6}/{trainer.max_steps}  {line}")
        except (BrokenPipeError, SystemExit):  # rich turns a broken pipe into SystemExit
            program.discard_stdout()  # the training continues without output
