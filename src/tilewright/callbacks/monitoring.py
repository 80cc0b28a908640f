"""Metrics that callbacks monitor."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import pytorch_lightning as pl

from tilewright.errors import UserError

# Beginnings of the names of metrics whose highest value is the best. Others of `validation/` fall.
RISING = ("alignment/", "codebook/", "retrieval/", "validation/psnr", "validation/ssim")
# Packages whose modules and callbacks log only the metrics that `validation_metrics` names.
KNOWN_PACKAGES = {
    "peft",
    "pytorch_lightning",
    "tilewright",
    "torch",
    "torchmetrics",
    "vector_quantize_pytorch",
}


def monitored_value(trainer: pl.Trainer, name: str) -> float:
    """Returns the value of a metric at the current validation.

    Raises:
        UserError: the validation does not measure the metric.
    """
    metrics = {
        key: value for key, value in trainer.callback_metrics.items() if not _is_of_training(key)
    }
    if name not in metrics:
        raise _not_measured(name, metrics)
    return float(metrics[name])


def check_measured(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Checks, before the training, that each validation will measure the monitored metrics.

    The module and the callbacks name their metrics in `validation_metrics`. A module or callback
    from another package may log any metric, so that any name is accepted.

    Raises:
        UserError: no validation measures one of them.
    """
    parts: list[Any] = [pl_module, *trainer.callbacks]  # type: ignore[attr-defined]
    if not all(map(_is_known, [*pl_module.modules(), *parts])):
        return
    metrics = [metric for part in parts for metric in getattr(part, "validation_metrics", ())]
    monitored = [getattr(part, "monitor", None) for part in parts]
    for name in filter(None, monitored):
        if not any(fnmatchcase(name, metric) for metric in metrics):
            raise _not_measured(name, metrics)


def _is_known(part: Any) -> bool:
    return type(part).__module__.partition(".")[0] in KNOWN_PACKAGES


def _not_measured(name: str, metrics: Iterable[str]) -> UserError:
    return UserError(
        f"monitor={name} is not measured at each validation: set one of "
        f"{', '.join(sorted(metrics))}"
    )


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
