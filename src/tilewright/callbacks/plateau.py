"""Learning rate halved on plateaus, as in the training of the paper's prior."""

import logging
import math
from typing import Any

import pytorch_lightning as pl

from tilewright.callbacks.monitoring import RISING, check_monitor, monitored_value
from tilewright.checks import check_number, check_whole
from tilewright.errors import UserError

log = logging.getLogger(__name__)


class HalveOnPlateau(pl.Callback):
    """Halves the schedule's learning rate whenever a metric stops falling.

    The paper halves the rate five times and does not define a plateau (appendix B.2). Values that
    are not finite do not count, because a lower rate would hide the problem.

    Args:
        monitor: name of a metric, lower is better.
        patience: validations without a new minimum after which the rate is halved.
        max_halvings: maximum number of halvings.
        min_delta: decrease below which a value does not count as a new minimum.
        grace_updates: first updates, such as a warm-up, whose validations do not count.
    """

    def __init__(
        self,
        monitor: str,
        patience: int = 5,
        max_halvings: int = 5,
        min_delta: float = 1e-3,
        grace_updates: int = 0,
    ):
        check_monitor(monitor)
        if monitor.startswith(RISING):
            raise UserError(
                f"callbacks.plateau.monitor={monitor} rises in a training, and only a metric that "
                "falls can be watched: set callbacks.plateau.monitor=validation/loss"
            )
        check_whole("callbacks.plateau.patience", patience)
        check_whole("callbacks.plateau.max_halvings", max_halvings, 0)
        check_number("callbacks.plateau.min_delta", min_delta, 0)
        check_whole("callbacks.plateau.grace_updates", grace_updates, 0)
        self.monitor = monitor
        self.patience = patience
        self.max_halvings = max_halvings
        self.min_delta = min_delta
        self.grace_updates = grace_updates
        self.best = float("inf")
        self.waited = 0
        self.halvings = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or self.halvings >= self.max_halvings:
            return
        value = monitored_value(trainer, self.monitor)
        if value < self.best - self.min_delta:
            self.best, self.waited = value, 0
            return
        if trainer.global_step <= self.grace_updates or not math.isfinite(value):
            return
        self.waited += 1
        if self.waited < self.patience:
            return
        self.waited = 0
        self.halvings += 1
        for config in trainer.lr_scheduler_configs:
            # LambdaLR multiplies base_lrs by the schedule and saves them in checkpoints.
            scheduler: Any = config.scheduler
            scheduler.base_lrs = [rate / 2 for rate in scheduler.base_lrs]
            for group in scheduler.optimizer.param_groups:  # already set for the next update
                group["lr"] /= 2
        log.info(
            "Halved the learning rate at update %d (%d of %d times)",
            trainer.global_step,
            self.halvings,
            self.max_halvings,
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "monitor": self.monitor,
            "best": self.best,
            "waited": self.waited,
            "halvings": self.halvings,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.halvings = state_dict["halvings"]
        if state_dict.get("monitor") == self.monitor:  # values of other metrics are not comparable
            self.best, self.waited = state_dict["best"], state_dict["waited"]
