"""Halves the learning rate where a training gets no better, as the paper's prior was trained."""

import logging
from typing import Any

import pytorch_lightning as pl

log = logging.getLogger(__name__)


class HalveOnPlateau(pl.Callback):
    """Multiplies the schedule's learning rate by a half whenever a figure stops falling.

    The paper says that the rate was halved five times, and not how a plateau was told (appendix
    B.2); here it is `patience` validations without a new lowest figure.

    Args:
        monitor: the figure, the lower the better.
        patience: validations without a new lowest one that make a plateau.
        times: halvings in all.
        least: how much lower a figure must be to count as lower.
    """

    def __init__(self, monitor: str, patience: int = 5, times: int = 5, least: float = 1e-3):
        self.monitor = monitor
        self.patience = patience
        self.times = times
        self.least = least
        self.best = float("inf")
        self.waited = 0
        self.halved = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or self.halved == self.times:
            return
        figure = float(trainer.callback_metrics[self.monitor])
        if figure < self.best - self.least:
            self.best, self.waited = figure, 0
            return
        self.waited += 1
        if self.waited < self.patience:
            return
        self.waited = 0
        self.halved += 1
        for config in trainer.lr_scheduler_configs:
            # LambdaLR multiplies these by the schedule, and its checkpoint holds them.
            scheduler: Any = config.scheduler
            scheduler.base_lrs = [rate / 2 for rate in scheduler.base_lrs]
            for group in scheduler.optimizer.param_groups:  # the next update's is set already
                group["lr"] /= 2
        log.info(
            "At update %d the learning rate was halved, %d of %d times",
            trainer.global_step,
            self.halved,
            self.times,
        )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "halved": self.halved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited = state_dict["best"], state_dict["waited"]
        self.halved = state_dict["halved"]
