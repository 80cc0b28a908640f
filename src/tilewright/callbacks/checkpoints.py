"""The checkpoint that a run goes on from."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`: after every validation, and at the run's last update.

    Both are inside the training loop. Lightning counts a checkpoint's unfinished step when a run
    resumes, so one that is saved after the training would shift every later figure by a step.

    Args:
        dirpath: folder of the checkpoint.
    """

    def __init__(self, dirpath: str):
        super().__init__(
            dirpath=dirpath,
            filename="last",
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step == trainer.max_steps:  # no validation may follow on this one
            trainer.save_checkpoint(f"{self.dirpath}/last.ckpt")
