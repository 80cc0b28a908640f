"""How many rows of the data a training has skipped, as curves."""

import pytorch_lightning as pl


class Skipped(pl.Callback):
    """Logs at each validation how many rows were skipped so far: `skipped/empty_caption` and so on.

    Of all processes, and with those of before the run was resumed; a kind of which there is none
    yet is left out.
    """

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        skips = trainer.datamodule.all_skips()  # type: ignore[attr-defined]
        for kind, count in sorted(skips.kinds.items()):
            pl_module.log(f"skipped/{kind.replace(' ', '_')}", float(count))
