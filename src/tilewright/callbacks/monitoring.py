"""Metrics that callbacks monitor."""

import pytorch_lightning as pl

from tilewright.errors import UserError


def monitored_value(trainer: pl.Trainer, name: str) -> float:
    """Returns the value of a metric at the current validation.

    Raises:
        UserError: the validation does not measure the metric.
    """
    metrics = {
        key: value for key, value in trainer.callback_metrics.items() if not _is_of_training(key)
    }
    if name not in metrics:
        raise UserError(
            f"monitor={name} is not measured at each validation: set one of "
            f"{', '.join(sorted(metrics))}"
        )
    return float(metrics[name])


def check_monitor(name: str) -> None:
    """Checks, before the training, that a metric is not one of training batches.

    Raises:
        UserError: it is.
    """
    if _is_of_training(name):
        raise UserError(
            f"monitor={name} is not measured at validations: set a metric of the validation split, "
            "such as validation/loss"
        )


def _is_of_training(name: str) -> bool:
    return name.startswith(("train/", "schedule/", "speed/", "skipped/"))
