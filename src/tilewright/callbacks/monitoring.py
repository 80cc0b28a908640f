"""Metrics that callbacks monitor."""

import pytorch_lightning as pl

from tilewright.errors import UserError

# Beginnings of the names of metrics whose highest value is the best. Others of `validation/` fall.
RISING = ("alignment/", "codebook/", "retrieval/", "validation/psnr", "validation/ssim")


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


def check_direction(key: str, name: str, mode: str) -> None:
    """Checks that `mode` is the direction in which a metric improves.

    Args:
        key: key of the direction, for the message.
        name: name of the metric.
        mode: "min" or "max", the best value.

    Raises:
        UserError: the best value of the metric is the other one.
    """
    rises = name.startswith(RISING)
    if rises and mode == "min":
        raise UserError(f"monitor={name} is best at its maximum: set {key}=max")
    if name.startswith("validation/") and not rises and mode == "max":
        raise UserError(f"monitor={name} is best at its minimum: set {key}=min")


def _is_of_training(name: str) -> bool:
    return name.startswith(("train/", "schedule/", "speed/", "skipped/"))
