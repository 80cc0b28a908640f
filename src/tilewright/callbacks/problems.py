"""Base class of callbacks that warn about a problem of the training and can end it."""

import logging

import pytorch_lightning as pl

from tilewright.checks import check_flag
from tilewright.training.loggers import log_text

log = logging.getLogger(__name__)


class ProblemCallback(pl.Callback):
    """Warns once about each problem, in the log and as a text of the loggers.

    Args:
        stop_key: configuration key of `stop`.
        stop: end the training at the first problem.

    Attributes:
        stopped_by: key of the setting that ended the training, or None.

    Raises:
        UserError: `stop` is not a flag.
    """

    stopped_by: str | None = None

    def __init__(self, stop_key: str, stop: bool):
        check_flag(stop_key, stop)
        self._stop_key = stop_key
        self.stop = stop
        self._reported: list[str] = []

    def report(self, trainer: pl.Trainer, problem: str, message: str) -> None:
        """Warns about a problem, unless it was reported before, and ends the training if asked.

        Args:
            problem: short name of the problem.
            message: continues "At update N".
        """
        if problem not in self._reported:
            self._reported.append(problem)
            warn(trainer, problem, message)
        if self.stop:
            trainer.should_stop = True
            self.stopped_by = self._stop_key


def warn(trainer: pl.Trainer, problem: str, message: str) -> None:
    """Warns about a problem, in the log and as a text of the loggers.

    Args:
        problem: short name of the problem.
        message: continues "At update N".
    """
    message = f"At update {trainer.global_step} {message}"
    log.warning("%s", message)
    log_text(trainer, f"warnings/{problem}", message)
