"""Recall@k between captions and images during a ranker's training."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.types import STEP_OUTPUT

from tilewright.metrics.retrieval import RetrievalRecall


class RetrievalCallback(pl.Callback):
    """Logs, at each validation, recall@1, @5 and @10 in both directions among its pairs."""

    validation_metrics = tuple(
        f"retrieval/{direction}_r@{k}"
        for direction in ("caption_to_image", "image_to_caption")
        for k in (1, 5, 10)
    )

    def __init__(self) -> None:
        self._recall: RetrievalRecall | None = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._recall = RetrievalRecall().to(pl_module.device)

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
        assert self._recall is not None
        self._recall.update(outputs["text"], outputs["images"])

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._recall is not None
        metrics = self._recall.compute()
        pl_module.log_dict({f"retrieval/{name}": value for name, value in metrics.items()})
