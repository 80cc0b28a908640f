"""Checkpoints from which a run resumes to the same bits."""

import math
import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, WeightAveraging
from torch import Tensor

from tilewright import program, runs
from tilewright.callbacks.health import loss_advice
from tilewright.callbacks.monitoring import check_direction, check_monitor, monitored_value
from tilewright.callbacks.problems import warn
from tilewright.distributed import launch
from tilewright.distributed.collectives import max_over_processes
from tilewright.distributed.fsdp import local_tensor
from tilewright.errors import UserError
from tilewright.training.checkpoint_steps import read_steps
from tilewright.training.gradient_scaling import all_finite
from tilewright.training.trainer import is_accumulating, is_before_validation, is_validation_due


class UpdateBoundaryCheckpoint(ModelCheckpoint):
    """Saves after each validation, but never in the middle of an update.

    Checkpoints hold no gradients. If a validation falls between the accumulated batches of an
    update, the checkpoint is written after the update.

    Weights that are not finite are never saved, because the file that they would replace may be the
    last good one.

    A moved or copied run keeps its best score, which Lightning forgets. If the file of the best
    checkpoint is missing, the next validation counts as the best.

    Each checkpoint makes its run the `latest`, because a run without a checkpoint cannot be used.

    Args:
        dirpath: folder of the checkpoint, inside the run's folder.
        arguments, named_arguments: further arguments of `ModelCheckpoint`.

    Attributes:
        weights_problem: message that the weights are not finite, and what to do, or None.
    """

    weights_problem: str | None = None
    _pending = False

    def __init__(self, dirpath: str | Path, *arguments: Any, **named_arguments: Any):
        super().__init__(dirpath, *arguments, **named_arguments)
        # Lightning resolves links, but the folder of a run's checkpoints may be one.
        self.run = Path(dirpath).absolute().parent
        if self.monitor is not None:
            check_monitor(self.monitor)
            check_direction("callbacks.best.mode", self.monitor, self.mode)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self._update_latest(trainer)

    def _save_topk_checkpoint(
        self, trainer: pl.Trainer, monitor_candidates: dict[str, Tensor]
    ) -> None:
        if self._can_save(trainer):
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    def _can_save(self, trainer: pl.Trainer) -> bool:
        """Returns True if the weights are finite. All processes must call it.

        If they are not, the last checkpoint callback warns once, for all of them.
        """
        if _has_finite_weights(trainer):
            self.weights_problem = None
            return True
        if self.weights_problem is None:
            self.weights_problem = self._describe_problem(trainer)
            if trainer.checkpoint_callbacks[-1] is self:
                warn(trainer, "weights", self.weights_problem)
        return False

    def _describe_problem(self, trainer: pl.Trainer) -> str:
        """Returns `weights_problem` for weights that are not finite."""
        try:
            kept = runs.checkpoint(self.run, "last")
            effect = f"{kept.name} of update {read_steps(kept)} is kept"
            command = f"continue with resume={self.run}"
        except UserError:
            effect = "no checkpoint is written"
            command = f"start the run again with run_name={self.run.name}"
        return (
            f"the weights are not finite, so {effect}. The same settings would likely fail again: "
            f"{command}, and {loss_advice(trainer, trainer.lightning_module)}"
        )

    def _update_latest(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            runs.set_latest(self.run)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        def relocate(path: str) -> str:
            return path and str(Path(str(self.dirpath), os.path.relpath(path, state["dirpath"])))

        state = dict(state_dict)
        paths = ("best_model_path", "kth_best_model_path", "last_model_path")
        state |= {name: relocate(state[name]) for name in paths}
        scores = state["best_k_models"]
        state["best_k_models"] = {relocate(path): score for path, score in scores.items()}
        state["dirpath"] = self.dirpath
        if Path(state["best_model_path"]).is_file():
            super().load_state_dict(state)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.monitor is not None and not trainer.sanity_checking:
            monitored_value(trainer, self.monitor)  # raises if the metric is not measured
        self._pending = is_accumulating(trainer)
        if not self._pending:
            super().on_validation_end(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._pending and not is_accumulating(trainer):
            self.on_validation_end(trainer, pl_module)


class LastCheckpoint(UpdateBoundaryCheckpoint):
    """Writes `last.ckpt` before each validation, when training ends, and on signals.

    A failure in a validation, such as memory that runs out while sampling, must not lose the
    updates before it. The checkpoint is therefore that of one update earlier. A resumed run repeats
    the update and then validates, as an uninterrupted run does. The last validation also has a
    checkpoint after it. Without validations, checkpoints are written at the same updates.

    The signals are SIGTERM, SIGINT and SIGHUP, which `nohup` disables. Under SLURM it also handles
    SIGUSR1, and then queues the job again, unless the weights are not finite. Lightning's own
    handler saves in the middle of an update, at another point in each process.

    A signal takes effect after the current update or validation. A second signal ends the process
    at once. SIGHUP does not, because a shell repeats it.

    Args:
        dirpath: folder of the checkpoint, inside the run's folder.
    """

    def __init__(self, dirpath: str | Path):
        super().__init__(
            dirpath,
            filename="last",
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._signal: signal.Signals | None = None
        self._previous_handlers: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        signals = [signal.SIGTERM, signal.SIGINT]
        if launch.is_under_slurm():
            signals.append(signal.SIGUSR1)
        hangup = getattr(signal, "SIGHUP", None)  # Windows does not have it
        if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:
            signals.append(hangup)
        self._previous_handlers = {
            number: signal.signal(number, self._on_signal) for number in signals
        }

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number)
        for other in self._previous_handlers:
            signal.signal(other, signal.SIG_IGN if other.name == "SIGHUP" else signal.SIG_DFL)
        if self._signal.name == "SIGHUP":
            program.discard_terminal_output()

    def _restore_handlers(self) -> None:
        while self._previous_handlers:
            signal.signal(*self._previous_handlers.popitem())

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._restore_handlers()
        super().teardown(trainer, pl_module, stage)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if is_accumulating(trainer):
            return
        if trainer.should_stop or is_before_validation(trainer):
            super().on_validation_end(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if is_accumulating(trainer):
            return
        # Any process may get the signal, and all must stop after the same update.
        number = max_over_processes(self._signal or 0, trainer.strategy.root_device)
        if is_validation_due(trainer):
            return  # a run that resumes from this point would leave the validation out
        if number or trainer.should_stop or is_before_validation(trainer):
            self._save_last(trainer)
        is_complete = 0 <= trainer.max_steps <= trainer.global_step
        if number and not is_complete:
            self._exit(trainer, signal.Signals(number))

    def _save_last(self, trainer: pl.Trainer) -> None:
        if self._can_save(trainer):
            trainer.save_checkpoint(f"{self.dirpath}/last.ckpt")
            self._update_latest(trainer)

    def _exit(self, trainer: pl.Trainer, number: signal.Signals) -> None:
        if self.weights_problem is None:
            result = f". The checkpoint is saved: continue with resume={self.run}"
        else:
            result = f", but {self.weights_problem}"
        trainer.print(f"Stopped by {number.name} after update {trainer.global_step}{result}")
        is_requeued = number.name == "SIGUSR1" and self.weights_problem is None
        if trainer.is_global_zero and is_requeued:
            launch.requeue()
        # A shell's exit status for a signal. Lightning takes another process's non-zero status for
        # a crash and kills the first process.
        raise SystemExit(128 + number if trainer.is_global_zero else 0)


@torch.no_grad()
def _has_finite_weights(trainer: pl.Trainer) -> bool:
    """Returns True if the trained weights and their average are finite in all processes.

    Frozen weights do not count: training cannot change them, and a network may have infinite ones.
    """
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    averages = [c._average_model for c in callbacks if isinstance(c, WeightAveraging)]
    weights = [
        local_tensor(parameter)
        for module in (trainer.lightning_module, *averages)
        if module is not None
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    weights = [weight for weight in weights if weight.numel()]  # a process may have no shard
    return trainer.strategy.reduce_boolean_decision(not weights or bool(all_finite(weights)))


def weights_problem(trainer: pl.Trainer) -> str | None:
    """Returns the first `weights_problem` of a trainer's checkpoint callbacks, or None."""
    problems = (getattr(c, "weights_problem", None) for c in trainer.checkpoint_callbacks)
    return next(filter(None, problems), None)


def best_score(trainer: pl.Trainer) -> float | None:
    """Returns the best value so far of the first checkpoint callback's metric, or None.

    The value of weights that were never finite is infinite. A sweep then counts the job as the
    worst, and not as failed.
    """
    checkpoint = trainer.checkpoint_callback
    if not isinstance(checkpoint, ModelCheckpoint) or checkpoint.monitor is None:
        return None
    if checkpoint.best_model_score is not None:
        return float(checkpoint.best_model_score)
    if weights_problem(trainer) is None:
        return None
    return math.inf if checkpoint.mode == "min" else -math.inf
