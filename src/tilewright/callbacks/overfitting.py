"""Warning about a model that overfits, and the end of its training."""

import logging
import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from tilewright.callbacks.monitoring import monitored_value
from tilewright.checks import check_flag, check_number, check_whole
from tilewright.training.loggers import log_text

log = logging.getLogger(__name__)


class OverfittingCheck(pl.Callback):
    """Warns once when the metric of the best checkpoint gets worse while the training loss falls.

    All of these must hold: the last `patience` validations are worse than the best one, the last
    of them by at least `min_rise`, and the mean training loss between two validations is lower than
    before the best one.

    A run without a best checkpoint trains past that point on purpose. It is not checked.

    Args:
        patience: validations in a row.
        min_rise: share of the best value.
        stop: end the training when the model overfits.

    Attributes:
        stopped_by: key of the setting that has ended the training, or None.

    Raises:
        UserError: a number is not possible.
    """

    stopped_by: str | None = None

    def __init__(self, patience: int = 3, min_rise: float = 0.01, stop: bool = False):
        check_whole("callbacks.overfitting.patience", patience)
        check_number("callbacks.overfitting.min_rise", min_rise, 0)
        check_flag("callbacks.overfitting.stop", stop)
        self.patience = patience
        self.min_rise = min_rise
        self.stop = stop
        self._best = math.inf  # lower is better
        self._best_update = 0
        self._best_train_loss = math.nan  # mean between the best validation and the one before it
        self._waited = 0  # validations since the best one
        self._warned = False
        self._train_loss: Tensor | float = 0.0  # sum over the batches since the last validation
        self._batches = 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        checkpoint = _best_checkpoint(trainer)
        if checkpoint is not None:
            _, loss = _training_loss(trainer, checkpoint)
            self._train_loss = self._train_loss + loss
            self._batches += 1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        checkpoint = _best_checkpoint(trainer)
        if trainer.sanity_checking or checkpoint is None:
            return
        value = monitored_value(trainer, str(checkpoint.monitor))
        train_loss = float(self._train_loss) / self._batches if self._batches else math.nan
        self._train_loss, self._batches = 0.0, 0
        sign = 1 if checkpoint.mode == "min" else -1
        overfits = self._update(sign * value, train_loss, trainer.global_step)
        if not trainer.strategy.reduce_boolean_decision(overfits):
            return
        if not self._warned:
            self._warned = True
            message = self._message(trainer, checkpoint, value, train_loss)
            log.warning("%s", message)
            log_text(trainer, "warnings/overfitting", message)
        if self.stop:
            trainer.should_stop = True
            self.stopped_by = "callbacks.overfitting.stop"

    def _update(self, value: float, train_loss: float, update: int) -> bool:
        """Records a validation, and returns True if the model overfits.

        Args:
            value: metric, lower is better.
            train_loss: mean training loss since the last validation.
            update: number of updates so far.
        """
        if value < self._best:
            self._best, self._best_update, self._best_train_loss = value, update, train_loss
            self._waited = 0
            return False
        self._waited += 1
        has_risen = value - self._best >= self.min_rise * abs(self._best)
        return self._waited >= self.patience and has_risen and train_loss < self._best_train_loss

    def _message(
        self, trainer: pl.Trainer, checkpoint: ModelCheckpoint, value: float, train_loss: float
    ) -> str:
        name, _ = _training_loss(trainer, checkpoint)
        verb, sign = ("rises", 1) if checkpoint.mode == "min" else ("falls", -1)
        return (
            f"At update {trainer.global_step} the model overfits: {checkpoint.monitor} {verb} from "
            f"{sign * self._best:.4g} at update {self._best_update} to {value:.4g}, while {name} "
            f"falls from {self._best_train_loss:.4g} to {train_loss:.4g}. "
            f"{Path(checkpoint.best_model_path).name} holds the best weights. Stop the run "
            "(callbacks.overfitting.stop=true does so), or start a new one with more images, more "
            "augmentation (data.crops_per_image) or a smaller model"
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self._best,
            "best_update": self._best_update,
            "best_train_loss": self._best_train_loss,
            "waited": self._waited,
            "warned": self._warned,
            "train_loss": float(self._train_loss),
            "batches": self._batches,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, f"_{name}", value)


def _best_checkpoint(trainer: pl.Trainer) -> ModelCheckpoint | None:
    """Returns the callback that keeps the best checkpoint, or None."""
    checkpoint = trainer.checkpoint_callback
    if isinstance(checkpoint, ModelCheckpoint) and checkpoint.monitor is not None:
        return checkpoint
    return None


def _training_loss(trainer: pl.Trainer, checkpoint: ModelCheckpoint) -> tuple[str, Tensor | float]:
    """Returns the name and the last value of the training loss that belongs to a metric.

    It has the metric's name in the group `train/`, or else it is `train/loss`.
    """
    metrics = trainer.callback_metrics
    counterpart = f"train/{str(checkpoint.monitor).removeprefix('validation/')}"
    name = counterpart if counterpart in metrics else "train/loss"
    return name, metrics.get(name, math.nan)
