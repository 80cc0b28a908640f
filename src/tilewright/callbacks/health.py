"""Says in one line when a training goes wrong, and which setting is the likely cause."""

import logging
from typing import Any

import pytorch_lightning as pl
import torch
from torch.nn.utils import get_total_norm

from tilewright.distributed.fsdp import whole

log = logging.getLogger(__name__)


class Health(pl.Callback):
    """Logs the gradient's norm, and watches for a loss that is no number and a dying codebook.

    Args:
        stop: end the training where something is wrong; otherwise it is only told, once.
        least_codebook_use: share of the codes below which a validation counts as a collapse; a
            stage without a codebook is not asked.
        grace: updates before the codebook is judged; at the beginning it is always small.
    """

    def __init__(self, stop: bool = False, least_codebook_use: float = 0.05, grace: int = 1000):
        self.stop = stop
        self.least_codebook_use = least_codebook_use
        self.grace = grace
        self._told: set[str] = set()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        pl_module.log("train/gradient_norm", whole(get_total_norm(gradients)))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return  # looking at the loss makes a GPU wait
        finite = bool(torch.isfinite(outputs["loss"]))
        if not trainer.strategy.reduce_boolean_decision(finite):  # of all processes
            self._tell(
                trainer,
                "loss",
                "the loss is no longer a finite number: lower model.learning_rate or "
                "trainer.gradient_clip_val, or set trainer.precision=32-true",
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        use = trainer.callback_metrics.get("codebook/usage")
        if use is not None and trainer.global_step >= self.grace and use < self.least_codebook_use:
            self._tell(
                trainer,
                "codebook",
                f"the codebook collapses, {float(use):.1%} of the codes are in use: raise "
                "model.beta and let it rise earlier, or keep model.temperature higher for longer",
            )

    def _tell(self, trainer: pl.Trainer, what: str, trouble: str) -> None:
        if what not in self._told:
            self._told.add(what)
            log.warning("At update %d %s", trainer.global_step, trouble)
        trainer.should_stop = trainer.should_stop or self.stop
