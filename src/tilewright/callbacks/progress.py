"""One line for each validation, for terminals and log files alike."""

import pytorch_lightning as pl


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
        trainer.print(f"step {trainer.global_step:>6}/{trainer.max_steps}  {line}")
