"""Metrics that callbacks monitor."""

import pytorch_lightning as pl

from tilewright.errors import UserError


def monitored_value(trainer: pl.Trainer, name: str) -> float:
    """Returns the value of a metric at the current validation.

    Raises:
        UserError: the validation does not measure the metric.
    """
    metrics = trainer.callback_metrics
    if name not in metrics:
        measured = ", ".join(sorted(key for key in metrics if not key.startswith("train/")))
        raise UserError(f"monitor={name} is not measured at each validation: set one of {measured}")
    return float(metrics[name])
