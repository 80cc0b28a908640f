"""How many rows of the data a training has skipped, as curves."""

import pytorch_lightning as pl


class Skipped(pl.Callback):
    """Logs at each validation how many rows were skipped so far: `skipped/empty_caption` and so on.

    Of all processes, and with those of before the run was resumed; a kind of which there is none
    yet is left out.
    """

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        counts = trainer.datamodule.total_skip_counts()  # type: ignore[attr-defined]
        for reason, count in sorted(counts.reasons.items()):
            pl_module.log(f"skipped/{reason.replace(' ', '_')}", float(count))
