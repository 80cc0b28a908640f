"""Exponential moving average of the weights."""

import copy
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tilewright.checks import check_number, check_whole
from tilewright.distributed.fsdp import shard_module
from tilewright.errors import UserError
from tilewright.training.trainer import AroundValidation, Trainer


class AveragedWeights(AroundValidation, WeightAveraging):
    """Exponential moving average with a warm-up, used by validations, checkpoints and `eval`.

    After n updates of the average, its decay is the smaller of `decay` and (1 + n) / (10 + n). The
    average of a short run is therefore not dominated by the random initial weights.

    `tilewright.training.Trainer` exchanges the weights before any other callback sees a validation,
    and restores the trained weights after the last callback.

    Args:
        decay: share of the old average that an update keeps (the paper: 0.999 for the dVAE, 0.99
            for the prior).
        every_n_updates: updates of the weights between two updates of the average (the paper: 25
            for the prior).
    """

    def __init__(self, decay: float, every_n_updates: int = 1):
        check_number("callbacks.ema.decay", decay, 0, 1)
        check_whole("callbacks.ema.every_n_updates", every_n_updates)

        def update_average(
            averaged: list[Tensor], current: list[Tensor], updates: Tensor | int
        ) -> None:
            warm_up = (1 + int(updates)) / (10 + int(updates))
            torch._foreach_lerp_(averaged, current, 1 - min(decay, warm_up))

        super().__init__(use_buffers=False, multi_avg_fn=update_average)
        self.every_n_updates = every_n_updates
        self._swapped = False  # True during a validation

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Copies the module, then shards both: FSDP2 refuses to copy a sharded module.

        Frozen weights are shared, not copied.

        Raises:
            UserError: the trainer does not restore the weights after a validation.
        """
        if not isinstance(trainer, Trainer):
            raise UserError(
                "AveragedWeights does not work with Lightning's Trainer: use "
                "tilewright.training.Trainer"
            )
        if stage == "fit":
            frozen = {id(p): p for p in pl_module.parameters() if not p.requires_grad}
            self._average_model = AveragedModel(nn.Module(), use_buffers=False, **self._kwargs)
            self._average_model.module = copy.deepcopy(pl_module, frozen)
            shard_module(trainer, self._average_model.module)
            self._average_model.to(trainer.strategy.root_device)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Returns True if the average moves after the update `step_idx`, which counts from 0."""
        return step_idx is not None and step_idx % self.every_n_updates == 0

    def before_validation(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._exchange(pl_module)

    def after_validation(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._exchange(pl_module)

    # Lightning's own exchange would hide the average from callbacks that come later in the list.
    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pass

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pass

    def _exchange(self, pl_module: pl.LightningModule) -> None:
        if self._average_model is not None:
            self._swap_models(pl_module)
            self._swapped = not self._swapped

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Saves the average as `state_dict` and the trained weights as `current_model_state`."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:
            trained, average = checkpoint["state_dict"], checkpoint["current_model_state"]
            checkpoint |= {"state_dict": average, "current_model_state": trained}
