"""Reconstructions from hard codes, in pictures and in figures."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import STEP_OUTPUT

from tilewright.metrics.reconstruction import ReconstructionMetrics
from tilewright.viz.images import reconstruction_grid, show


class Reconstructions(pl.Callback):
    """At each validation, originals over their reconstructions, and PSNR, SSIM and L1.

    Args:
        count: pictures shown, of the validation's first batch.
    """

    def __init__(self, count: int = 16):
        self.count = count
        self._metrics: ReconstructionMetrics | None = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._metrics = ReconstructionMetrics(prefix="validation/").to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(outputs, dict)
        assert self._metrics is not None
        images, reconstructions = batch["image"], outputs["reconstructions"]
        self._metrics.update(reconstructions, images)
        if batch_idx == 0:
            picture = reconstruction_grid(images[: self.count], reconstructions[: self.count])
            show(trainer, "samples/reconstructions", picture)

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._metrics is not None
        pl_module.log_dict(self._metrics.compute())
