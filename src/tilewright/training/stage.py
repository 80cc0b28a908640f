"""Base class of the stages' LightningModules."""

import pytorch_lightning as pl
from torch import Tensor
from torch.optim import Optimizer

from tilewright.distributed.collectives import gather_sizes, num_processes, process_rank
from tilewright.distributed.fsdp import shard_module
from tilewright.training.loggers import drop_repeated_logs


class StageModule(pl.LightningModule):
    """LightningModule of a stage, which `FullyShardedStrategy` can shard.

    Subclasses set `self.network`. The network's attribute `block_types` is a tuple of the classes
    of its repeated blocks, each of which is sharded by itself.
    """

    def configure_model(self) -> None:
        shard_module(self.trainer, self)

    def on_train_start(self) -> None:
        drop_repeated_logs(self.trainer)

    def on_train_batch_start(self, batch: dict, batch_idx: int) -> None:
        # Lightning counts steps for loggers by itself, and wrongly after some resumes.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step

    def row_counts(self, batch: dict) -> Tensor:
        """Returns the number of rows that count in the batch of each process, [P].

        Call it in a training step, in all processes. If no row counts in any process, the row of
        the last process counts, as in a training on one process.
        """
        counts = gather_sizes(num_rows(batch), self.device)
        counts[-1] += counts.sum() == 0
        return counts

    def row_weight(self, batch: dict) -> Tensor | float:
        """Returns the weight of this process's mean over rows.

        The weighted means, averaged over the processes, are the mean over the rows of all.
        """
        if num_processes() == 1:
            return 1.0
        counts = self.row_counts(batch)
        return counts[process_rank()] * len(counts) / counts.sum()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # Callbacks may scale the schedule's value, so log what the optimizer uses.
        self.log("schedule/learning_rate", optimizer.param_groups[0]["lr"])


def num_rows(batch: dict) -> int:
    """Returns the number of rows of a batch that count, which is 0 for padding."""
    return batch["rows"] if "rows" in batch else len(next(iter(batch.values())))
