"""Reconstructions of a dVAE from hard codes, as images and as metrics."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import STEP_OUTPUT

from tilewright.checks import check_whole
from tilewright.metrics.reconstruction import ReconstructionMetrics
from tilewright.training.loggers import log_image
from tilewright.viz.images import reconstruction_grid


class Reconstructions(pl.Callback):
    """Logs, at each validation, originals above their reconstructions, and PSNR, SSIM and L1.

    Args:
        count: number of images shown, from the first validation batch.
    """

    validation_metrics = ("validation/psnr", "validation/ssim", "validation/l1")

    def __init__(self, count: int = 16):
        check_whole("callbacks.reconstructions.count", count)
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
        reconstructions = outputs["reconstructions"]
        images = batch["image"][: len(reconstructions)]
        self._metrics.update(reconstructions, images)
        if batch_idx == 0 and len(images):
            grid = reconstruction_grid(images[: self.count], reconstructions[: self.count])
            log_image(trainer, "samples/reconstructions", grid)

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._metrics is not None
        pl_module.log_dict(self._metrics.compute())
