"""Lightning's trainer with an order of callbacks that does not depend on the config."""

from collections.abc import Iterable

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, Checkpoint


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
    """Lightning's `Trainer`, which sorts its callbacks with `order_callbacks`.

    A callback that a recipe or `+callbacks.x=` adds therefore measures the averaged weights,
    wherever the config lists it.
    """

    _callbacks: list[Callback]

    @property
    def callbacks(self) -> list[Callback]:
        return self._callbacks

    @callbacks.setter
    def callbacks(self, callbacks: Iterable[Callback]) -> None:
        # Lightning assigns the list again after it has added callbacks of its own.
        self._callbacks = order_callbacks(callbacks)
