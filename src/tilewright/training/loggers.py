"""Lightning's loggers for runs that are counted in updates and can be resumed."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch import Tensor

from tilewright.files import write_atomically


def log_image(trainer: pl.Trainer, tag: str, image: Tensor) -> None:
    """Logs an image [3, H, W] in [0, 1] to every TensorBoard logger of a trainer."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, image.clamp(0, 1), trainer.global_step)


def log_text(trainer: pl.Trainer, tag: str, text: str) -> None:
    """Logs a text to every TensorBoard logger of a trainer."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(tag, text, trainer.global_step)


def drop_repeated_logs(trainer: pl.Trainer) -> None:
    """Drops what loggers hold of updates after the one that the training starts from.

    A killed run has logged them. A run that resumes or starts over logs them again.
    """
    for logger in trainer.loggers:
        if isinstance(logger, StepTensorBoardLogger | AppendingCSVLogger):
            logger.drop_after(trainer.global_step)


def _without_epoch(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Returns metrics without Lightning's `epoch`: runs are counted in updates."""
    return {name: value for name, value in metrics.items() if name != "epoch"}


def _updates(step: int | None) -> int | None:
    """Returns the number of updates after a step of Lightning, which counts from 0."""
    return None if step is None else step + 1


class StepTensorBoardLogger(TensorBoardLogger):
    """`TensorBoardLogger` that logs metrics by update and writes no hparams.yaml."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        super().log_metrics(_without_epoch(metrics), _updates(step))

    @rank_zero_only
    def save(self) -> None:
        self.experiment.flush()

    @rank_zero_only
    def drop_after(self, update: int) -> None:
        """Makes TensorBoard drop the events of later updates.

        The event is that of `SummaryWriter(purge_step=...)`. The writer is made too early for it.
        """
        restart = SessionLog(status=SessionLog.START)
        self.experiment._get_file_writer().add_event(Event(step=update + 1, session_log=restart))


class _AppendingWriter(ExperimentWriter):
    """Writer of a `metrics.csv` that keeps existing rows.

    Lightning's writer deletes them. It also loses all rows if it is killed while it adds a column.
    """

    def __init__(self, log_dir: str):
        super().__init__(log_dir)
        self._file = Path(self.metrics_file_path)
        content = self._file.read_text() if self._file.exists() else ""
        complete = content[: content.rfind("\n") + 1]  # a kill may cut the last row
        if complete != content:
            write_atomically(self._file, complete)
        if complete:
            self.metrics_keys = next(csv.reader(complete.splitlines()))
        elif content:
            self._file.unlink()

    def _check_log_dir_exists(self) -> None:
        pass

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self._write(self._read())

    def drop_after(self, update: int) -> None:
        """Drops the rows of later updates."""
        rows = self._read() if self._file.exists() else []
        kept = [row for row in rows if int(row["step"] or 0) <= update]
        if len(kept) < len(rows):
            self._write(kept)

    def _read(self) -> list[dict[str, str]]:
        with self._file.open(newline="") as file:
            return list(csv.DictReader(file))

    def _write(self, rows: list[dict[str, str]]) -> None:
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, self.metrics_keys)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self._file, table.getvalue())


class AppendingCSVLogger(CSVLogger):
    """`CSVLogger` that logs metrics by update. A resumed run appends to its `metrics.csv`."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        super().log_metrics(_without_epoch(metrics), _updates(step))

    @rank_zero_only
    def drop_after(self, update: int) -> None:
        """Drops the rows of later updates from the file."""
        self.experiment.drop_after(update)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = _AppendingWriter(self.log_dir)
        return self._experiment
