"""Lightning's loggers for runs that are counted in updates and can be resumed."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor


def log_image(trainer: pl.Trainer, tag: str, image: Tensor) -> None:
    """Logs an image [3, H, W] in [0, 1] to every TensorBoard logger of a trainer."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, image.clamp(0, 1), trainer.global_step)


def _without_epoch(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns metrics without Lightning's `epoch`: runs are counted in updates."""
    return {name: value for name, value in metrics.items() if name != "epoch"}


class StepTensorBoardLogger(TensorBoardLogger):
    """`TensorBoardLogger` that logs metrics by update and writes no hparams.yaml."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        super().log_metrics(_without_epoch(metrics), step)

    @rank_zero_only
    def save(self) -> None:
        self.experiment.flush()


class AppendingCSVLogger(CSVLogger):
    """`CSVLogger` that appends to `metrics.csv`. Lightning's own deletes it when a run resumes."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        super().log_metrics(_without_epoch(metrics), step)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            file = Path(self.log_dir) / "metrics.csv"
            previous = file.read_text() if file.exists() else None
            writer = super().experiment
            if previous:
                file.write_text(previous)
                writer.metrics_keys = next(csv.reader(previous.splitlines()))
        return super().experiment
