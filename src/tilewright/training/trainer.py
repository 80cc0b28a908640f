"""Lightning's trainer for runs that are counted in updates."""

import math
from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Checkpoint

from tilewright.hardware import trainer_device
from tilewright.training.gradient_scaling import Float16Precision, Scaling


class AroundValidation(Callback):
    """Base class of callbacks that act before and after all others in every validation.

    Only `Trainer` calls `after_validation`.
    """

    def before_validation(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs before any other callback sees the validation."""

    def after_validation(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Runs after all other callbacks, including checkpoints."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.before_validation(trainer, pl_module)


class _AfterValidation(Callback):
    """Calls `after_validation` after all other callbacks."""

    def __init__(self, callback: AroundValidation):
        self._callback = callback

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._callback.after_validation(trainer, pl_module)


def is_accumulating(trainer: pl.Trainer) -> bool:
    """Returns True if only some of the next update's batches have been processed."""
    return bool((trainer.fit_loop.total_batch_idx + 1) % trainer.accumulate_grad_batches)


def is_validation_due(trainer: pl.Trainer) -> bool:
    """Returns True if a validation follows the current batch, not counting one of an early stop."""
    batches = trainer.fit_loop.total_batch_idx + 1
    is_last = 0 <= trainer.max_steps <= trainer.global_step
    is_due = is_last or batches % (trainer.val_check_batch or math.inf) == 0
    return bool(trainer.enable_validation and is_due)


def is_before_validation(trainer: pl.Trainer) -> bool:
    """Returns True if a validation follows one of the next update's batches.

    A trainer without validations counts as one that has them.
    """
    batches = trainer.fit_loop.total_batch_idx + 1
    is_last = trainer.global_step + 1 == trainer.max_steps
    interval = trainer.val_check_batch or math.inf
    return is_last or (batches + trainer.accumulate_grad_batches) // interval > batches // interval


def order_callbacks(callbacks: Iterable[Callback]) -> list[Callback]:
    """Sorts callbacks. Lightning calls every hook in the order of the list.

    1. Callbacks of type `AroundValidation`, such as `AveragedWeights`: `before_validation`.
    2. All others, in the given order.
    3. Checkpoint callbacks, in the given order.
    4. The `after_validation` of the first group, in reverse order.
    """
    listed = [callback for callback in callbacks if not isinstance(callback, _AfterValidation)]
    around = [callback for callback in listed if isinstance(callback, AroundValidation)]
    checkpoints = [callback for callback in listed if isinstance(callback, Checkpoint)]
    others = [callback for callback in listed if callback not in (*around, *checkpoints)]
    return [*around, *others, *checkpoints, *map(_AfterValidation, reversed(around))]


class Trainer(pl.Trainer):
    """Lightning's `Trainer` for runs that are counted in updates.

    It sorts its callbacks with `order_callbacks`. A callback that a recipe or `+callbacks.x=` adds
    therefore measures the averaged weights, wherever the config lists it.

    A validation follows the last update. A request to stop earlier takes effect after an update,
    because checkpoints hold no gradients.

    Args:
        gradient_scaling: gradient scales of `precision="16-mixed"` (`Float16Precision`).
        arguments: arguments of Lightning's `Trainer`.
    """

    _callbacks: list[Callback]
    _stop_requested = False

    def __init__(self, gradient_scaling: Scaling = "global", **arguments: Any):
        if arguments.get("precision") == "16-mixed":
            del arguments["precision"]
            device = trainer_device(arguments.get("accelerator", "auto"))
            plugin = Float16Precision(device, gradient_scaling)
            arguments["plugins"] = [*(arguments.get("plugins") or ()), plugin]
        without_epochs = {
            "max_epochs": -1,
            "min_epochs": 0,  # by default, Lightning waits for the end of the endless epoch
            "check_val_every_n_epoch": None,  # val_check_interval counts batches of the run
            "use_distributed_sampler": False,  # the data module shares batches between processes
        }
        super().__init__(**without_epochs | arguments)

    def fit(self, *args: Any, **kwargs: Any) -> None:
        self._stop_requested = False
        super().fit(*args, **kwargs)

    @property
    def should_stop(self) -> bool:
        """True if the training ends now. Lightning then validates once more."""
        if is_accumulating(self):
            return False
        is_last = 0 <= self.max_steps <= self.global_step
        return is_last or (self._stop_requested and self.global_step >= (self.min_steps or 0))

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        # Callbacks assign `should_stop or ...`, which must not withdraw a pending request.
        self._stop_requested = self._stop_requested or value

    @property
    def callbacks(self) -> list[Callback]:
        return self._callbacks

    @callbacks.setter
    def callbacks(self, callbacks: Iterable[Callback]) -> None:
        # Lightning assigns the list again after it has added callbacks of its own.
        self._callbacks = order_callbacks(callbacks)
