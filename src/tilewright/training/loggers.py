"""Lightning's loggers, made for runs that are counted in steps and may go on."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only


def _without_epoch(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Figures without the `epoch` that Lightning adds to all of them: no run has any."""
    return {name: value for name, value in metrics.items() if name != "epoch"}


class StepTensorBoardLogger(TensorBoardLogger):
    """A `TensorBoardLogger` of figures by step, and of nothing else."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        super().log_metrics(_without_epoch(metrics), step)

    @rank_zero_only
    def save(self) -> None:
        """Writes out what there is; Lightning's own adds an hparams.yaml with nothing in it."""
        self.experiment.flush()


class ContinuedCSVLogger(CSVLogger):
    """A `CSVLogger` that adds to `metrics.csv`; Lightning's own deletes it when a run resumes."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        super().log_metrics(_without_epoch(metrics), step)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            file = Path(self.log_dir) / "metrics.csv"
            kept = file.read_text() if file.exists() else None
            writer = super().experiment
            if kept:
                file.write_text(kept)
                writer.metrics_keys = next(csv.reader(kept.splitlines()))
        return super().experiment
