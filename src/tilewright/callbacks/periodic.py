"""What is measured at some of the validations."""

from typing import Any

import pytorch_lightning as pl


class Periodic(pl.Callback):
    """Looks at the model at every so many validations, and at the training's last one.

    The count goes with the checkpoint, so a resumed training measures when the whole one would.

    Args:
        every: validations between two looks.
    """

    def __init__(self, every: int = 1):
        self.every = every
        self._validations = 0

    def look(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measures and logs; called in all processes."""
        raise NotImplementedError

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._validations += 1
        last = trainer.global_step >= trainer.max_steps > 0
        if last or self._validations % self.every == 0:
            self.look(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]
