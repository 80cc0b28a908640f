"""Number of skipped rows during training."""

import pytorch_lightning as pl


class SkippedRows(pl.Callback):
    """Logs, at each validation, the rows skipped so far by reason: `skipped/empty_caption`.

    Counts include all processes and the time before a resume. A reason appears with its first row.
    """

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        counts = trainer.datamodule.total_skip_counts()  # type: ignore[attr-defined]
        for reason, count in sorted(counts.reasons.items()):
            pl_module.log(f"skipped/{reason.replace(' ', '_')}", float(count))
