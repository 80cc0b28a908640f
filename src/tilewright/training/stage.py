"""What the LightningModules of all stages have in common."""

import pytorch_lightning as pl
from torch.optim import Optimizer

from tilewright.distributed.fsdp import shard


class StageModule(pl.LightningModule):
    """A network that is trained, in shards where the trainer's strategy wants them.

    The network has `block_types`: the classes of the blocks that it is a stack of.
    """

    def configure_model(self) -> None:
        shard(self.trainer, self)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # Of the optimizer and not of the schedule, which callbacks may scale.
        self.log("schedule/learning_rate", optimizer.param_groups[0]["lr"])
