"""Base class of the stages' LightningModules."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor
from torch.optim import Optimizer

from tilewright.distributed.collectives import num_processes, sum_over_processes
from tilewright.distributed.fsdp import shard_module
from tilewright.errors import UserError, mismatch
from tilewright.training.gradient_scaling import Float16Precision
from tilewright.training.loggers import drop_repeated_logs


class StageModule(pl.LightningModule):
    """LightningModule of a stage, which `FullyShardedStrategy` can shard.

    Subclasses set `self.network`. The network's attribute `block_types` is a tuple of the classes
    of its repeated blocks, each of which is sharded by itself.
    """

    @property
    def validation_metrics(self) -> tuple[str, ...]:
        """Names of the metrics that every validation logs."""
        return ("validation/loss",)

    def configure_model(self) -> None:
        shard_module(self.trainer, self)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Loads the weights of a checkpoint.

        Raises:
            UserError: the weights do not fit the network.
        """
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            raise UserError(
                f"the checkpoint does not fit the network of this version ({mismatch(error)}): "
                "resume with the version in the run's environment.json, or start a new run"
            ) from error

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continues from the trained weights if the run no longer averages them.

        `state_dict` of a checkpoint holds the average.
        """
        if self._trainer is None or "current_model_state" not in checkpoint:
            return
        callbacks: Any = self.trainer.callbacks  # type: ignore[attr-defined]
        if not any(isinstance(callback, WeightAveraging) for callback in callbacks):
            checkpoint["state_dict"] = checkpoint["current_model_state"]

    def on_train_start(self) -> None:
        drop_repeated_logs(self.trainer)

    def on_train_batch_start(self, batch: dict, batch_idx: int) -> None:
        # Lightning counts steps for loggers by itself, and wrongly after some resumes.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.trainer.global_step

    def row_weight(self, batch: dict) -> Tensor | float:
        """Returns the weight of the mean over a batch's rows. Padding has the weight 0.

        The weighted means, averaged over the update's batches and over the processes, are the mean
        over all rows of the update. Call it in a training step, in all processes.
        """
        rows = batch.get("update_rows", [num_rows(batch)])
        share = num_rows(batch) * len(rows) * num_processes()
        if num_processes() == 1:
            return share / max(sum(rows), 1)
        total = sum_over_processes(torch.tensor(sum(rows), device=self.device))
        return share / total.clamp(min=1)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        # Callbacks may scale the schedule's value, so log what the optimizer uses.
        self.log("schedule/learning_rate", optimizer.param_groups[0]["lr"])
        precision = self.trainer.precision_plugin
        if isinstance(precision, Float16Precision):
            self.log("schedule/gradient_scale", precision.gradient_scale)
            self.log("schedule/skipped_updates", float(precision.skipped_updates))


def num_rows(batch: dict) -> int:
    """Returns the number of rows of a batch that count, which is 0 for padding."""
    return batch["rows"] if "rows" in batch else len(next(iter(batch.values())))
