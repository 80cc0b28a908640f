"""Detection of overfitting, with a warning or an early stop."""

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from tilewright.callbacks.monitoring import check_direction, check_monitor, monitored_value
from tilewright.callbacks.problems import ProblemCallback
from tilewright.checks import check_number, check_option, check_whole


class OverfittingCheck(ProblemCallback):
    """Warns once when a metric gets worse while the training loss falls.

    All of these must hold: the last `patience` validations are worse than the best one, the last
    of them by enough, and the mean training loss between two validations is lower than
    before the best one.

    Args:
        monitor: name of the metric.
        mode: "min" or "max", the best value of the metric.
        patience: validations in a row that must be worse than the best.
        min_rise: smallest distance from the best value, as a share of the improvement since the
            first validation. A share of the value itself depends on its zero, and that of a
            log-density is arbitrary.
        stop: end the training at the warning.

    Raises:
        UserError: an argument is not possible.
    """

    def __init__(
        self,
        monitor: str,
        mode: str = "min",
        patience: int = 3,
        min_rise: float = 0.01,
        stop: bool = False,
    ):
        super().__init__("callbacks.overfitting.stop", stop)
        check_monitor(monitor)
        check_option("callbacks.overfitting.mode", mode, ("min", "max"))
        check_direction("callbacks.overfitting.mode", monitor, mode)
        check_whole("callbacks.overfitting.patience", patience)
        check_number("callbacks.overfitting.min_rise", min_rise, 0)
        self.monitor = monitor
        self.mode = mode
        self.patience = patience
        self.min_rise = min_rise
        self._first = math.nan  # lower is better
        self._best = math.inf
        self._best_update = 0
        self._best_train_loss = math.nan  # mean between the best validation and the one before it
        self._waited = 0  # validations since the best one
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
        _, loss = self._training_loss(trainer)
        self._train_loss = self._train_loss + loss
        self._batches += 1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        value = monitored_value(trainer, self.monitor)
        train_loss = float(self._train_loss) / self._batches if self._batches else math.nan
        self._train_loss, self._batches = 0.0, 0
        sign = 1 if self.mode == "min" else -1
        overfits = self._update(sign * value, train_loss, trainer.global_step)
        if trainer.strategy.reduce_boolean_decision(overfits):
            self.report(trainer, "overfitting", self._message(trainer, value, train_loss))

    def _update(self, value: float, train_loss: float, update: int) -> bool:
        """Records a validation, and returns True if the model overfits.

        Args:
            value: metric, lower is better.
            train_loss: mean training loss since the last validation.
            update: number of updates so far.
        """
        if not math.isfinite(self._first):  # also after a checkpoint of an earlier version
            self._first = value
        if value < self._best:
            self._best, self._best_update, self._best_train_loss = value, update, train_loss
            self._waited = 0
            return False
        self._waited += 1
        has_risen = value - self._best >= self.min_rise * (self._first - self._best)
        return self._waited >= self.patience and has_risen and train_loss < self._best_train_loss

    def _message(self, trainer: pl.Trainer, value: float, train_loss: float) -> str:
        name, _ = self._training_loss(trainer)
        verb, sign = ("rises", 1) if self.mode == "min" else ("falls", -1)
        advice = "start a new one with more images, more augmentation or a smaller model"
        if self.stop:
            advice = f"The run stops here: {advice}"
        else:
            advice = f"Stop the run, or set callbacks.overfitting.stop=true. Then {advice}"
        kept = self._kept_weights(trainer)
        return (
            f"the model overfits: {self.monitor} {verb} from {sign * self._best:.4g} at update "
            f"{self._best_update} to {value:.4g}, while {name} falls from "
            f"{self._best_train_loss:.4g} to {train_loss:.4g}. {kept}{advice}"
        )

    def _kept_weights(self, trainer: pl.Trainer) -> str:
        """Returns the sentence on the best checkpoint, or nothing if the run keeps none."""
        best = trainer.checkpoint_callback
        if isinstance(best, ModelCheckpoint) and best.monitor == self.monitor:
            return f"{Path(best.best_model_path).name} holds the best weights. "
        return ""

    def _training_loss(self, trainer: pl.Trainer) -> tuple[str, Tensor | float]:
        """Returns the name and the last value of the training loss that belongs to the metric.

        It has the metric's name in the group `train/`, or else it is `train/loss`.
        """
        metrics = trainer.callback_metrics
        counterpart = f"train/{self.monitor.removeprefix('validation/')}"
        name = counterpart if counterpart in metrics else "train/loss"
        return name, metrics.get(name, math.nan)

    def state_dict(self) -> dict[str, Any]:
        return {
            "monitor": self.monitor,
            "mode": self.mode,
            "first": self._first,
            "best": self._best,
            "best_update": self._best_update,
            "best_train_loss": self._best_train_loss,
            "waited": self._waited,
            "reported": self._reported,
            "train_loss": float(self._train_loss),
            "batches": self._batches,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = dict(state_dict)
        metric = state.pop("monitor", None), state.pop("mode", None)
        if metric == (self.monitor, self.mode):  # values of another metric are not comparable
            for name, value in state.items():
                setattr(self, f"_{name}", value)
