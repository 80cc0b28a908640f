"""Base class of the stages' LightningModules."""

import pytorch_lightning as pl
from torch.optim import Optimizer

from tilewright.distributed.fsdp import shard_module


class StageModule(pl.LightningModule):
    """LightningModule of a stage, which `FullyShardedStrategy` can shard.

    Subclasses set `self.network`. The network's attribute `block_types` is a tuple of the classes
    of its repeated blocks, each of which is sharded by itself.
    """

    def configure_model(self) -> None:
        shard_module(self.trainer, self)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # Callbacks may scale the schedule's value, so log what the optimizer uses.
        self.log("schedule/learning_rate", optimizer.param_groups[0]["lr"])
