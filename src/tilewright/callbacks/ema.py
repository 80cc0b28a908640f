"""The average of the weights, which validation, checkpoints and every later use take."""

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from tilewright.distributed.fsdp import shard


class AveragedWeights(WeightAveraging):
    """An exponential moving average that warms up.

    Early on the average follows the weights closely, with a decay of (1 + n) / (10 + n) after n
    updates, so that a short run's is not made of its random beginning; then the decay is the one
    that was set.

    List it as the last callback: it swaps the average in before the others see the validation, and
    out after they have.

    Args:
        decay: share of the old average kept at each update (the paper: 0.999 for the dVAE, 0.99
            for the prior).
        every: updates of the weights between two of the average (the paper: 25 for the prior).
    """

    def __init__(self, decay: float, every: int = 1):
        def average(averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
            warm = (1 + int(updates)) / (10 + int(updates))
            torch._foreach_lerp_(averaged, current, 1 - min(decay, warm))

        super().__init__(use_buffers=False, multi_avg_fn=average)
        self.every = every

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Makes the average, in shards where the weights are: FSDP2 copies no sharded module."""
        if stage == "fit":
            self._average_model = AveragedModel(pl_module, use_buffers=False, **self._kwargs)
            shard(trainer, self._average_model.module)  # type: ignore[arg-type]
            self._average_model.to(trainer.strategy.root_device)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether the average moves after this update of the weights; after the first it does."""
        return step_idx is not None and step_idx % self.every == 0
