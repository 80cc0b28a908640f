"""Lightning's CSV logger, made to go on with a run's figures."""

import csv
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment


class ContinuedCSVLogger(CSVLogger):
    """A `CSVLogger` that adds to `metrics.csv`; Lightning's own deletes it when a run resumes."""

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
