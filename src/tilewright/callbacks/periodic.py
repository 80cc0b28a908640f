"""Base class of callbacks that measure every N validations."""

from typing import Any

import pytorch_lightning as pl

from tilewright.checks import check_whole


class PeriodicMeasurement(pl.Callback):
    """Calls `measure` every N validations and at the last one of a training.

    A validation whose result ends the training (`callbacks.overfitting.stop=true`) does not count
    as the last one, because the end is decided after the measurements.

    Subclasses override `measure`. The number of validations is part of the checkpoint, so that a
    resumed run measures at the same updates.

    Args:
        every_n_validations: validations between two measurements.

    Attributes:
        metrics: names of the metrics that `measure` logs. `*` stands for any text.

    Raises:
        UserError: a number is not possible.
    """

    metrics: tuple[str, ...] = ()

    def __init__(self, every_n_validations: int = 1):
        check_whole("every_n_validations", every_n_validations)
        self.every_n_validations = every_n_validations
        self._validations = 0

    @property
    def validation_metrics(self) -> tuple[str, ...]:
        """Names of the metrics of every validation."""
        return self.metrics if self.every_n_validations == 1 else ()

    def measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures and logs. All processes call this, with averaged weights."""
        raise NotImplementedError

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._validations += 1
        if trainer.should_stop or self._validations % self.every_n_validations == 0:
            self.measure(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]
