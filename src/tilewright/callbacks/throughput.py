"""Speed of a training and the time that it waits for data."""

import time
from typing import Any

import pytorch_lightning as pl


class Throughput(pl.Callback):
    """Logs images per second, and the share of the time spent waiting for data.

    Waiting is the time from the end of one step to the start of the next: reading the batch and
    moving it to the device. Validations count as neither.
    """

    def __init__(self) -> None:
        self._reset()
        self._step_end: float | None = None  # None if the next step does not follow a step
        self._step_start = 0.0

    def _reset(self) -> None:
        self._images = 0
        self._waited = self._worked = 0.0  # seconds

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        self._step_start = time.perf_counter()
        if self._step_end is not None:
            self._waited += self._step_start - self._step_end

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: dict,
        batch_idx: int,
    ) -> None:
        self._step_end = time.perf_counter()
        self._worked += self._step_end - self._step_start
        self._images += len(batch["caption"]) * trainer.world_size
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            total = self._worked + self._waited
            pl_module.log("speed/images_per_second", self._images / total)
            pl_module.log("speed/waiting_for_data", self._waited / total)
            self._reset()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step_end = None
