"""How far a training has come: a bar for terminals, and a line for each validation everywhere."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import RichProgressBar

from tilewright import program


class Bar(RichProgressBar):
    """Lightning's bar for a run that is counted in steps: one bar for all of them.

    Lightning's own counts epochs, and of a resumed run the steps that are left.
    """

    @property
    def total_train_batches(self) -> int | float:
        if self.trainer.max_steps < 0:
            return super().total_train_batches
        return self.trainer.max_steps * self.trainer.accumulate_grad_batches

    def _get_train_description(self, current_epoch: int) -> str:
        return f"{'Training':{len(self.validation_description)}}"


class ProgressLine(pl.Callback):
    """Prints the step and the validation's figures, beside whatever bar is shown."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        figures = {
            name.removeprefix("validation/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("validation/", "codebook/", "speed/"))
        }
        line = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        try:
            trainer.print(f"step {trainer.global_step:>6}/{trainer.max_steps}  {line}")
        except (BrokenPipeError, SystemExit):  # rich, where its bar is shown, makes it the latter
            program.discard_stdout()  # and the training goes on
