"""The checkpoint that a run goes on from: when it is written, and that it is always a whole one."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from tilewright.distributed import launch


class WholeUpdateCheckpoint(ModelCheckpoint):
    """Lightning's, after every validation, for a run that is to go on from any checkpoint exactly.

    None holds a gradient, so one that falls between the batches of an update waits for the update.
    """

    _due = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._due = _accumulates(trainer)
        if not self._due:
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
        if self._due and not _accumulates(trainer):
            self.on_validation_end(trainer, pl_module)


class LastCheckpoint(WholeUpdateCheckpoint):
    """Keeps `last.ckpt`: after every validation, at the last update, and on SIGTERM or SIGINT.

    Under SLURM on SIGUSR1 as well, and the job is then queued again. Lightning would write a
    checkpoint of its own in the midst of an update, each process at another place.

    All are inside the training loop. Lightning counts a checkpoint's unfinished step when a run
    resumes, so one that is saved after the training would shift every later figure by a step.

    A signal is answered after the update, or the validation, that it interrupts; a second one ends
    the process as it would without this callback.

    Args:
        dirpath: folder of the checkpoint.
    """

    def __init__(self, dirpath: str):
        super().__init__(
            dirpath=dirpath,
            filename="last",
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        self._signal: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        numbers = [signal.SIGTERM, signal.SIGINT]
        if launch.under_slurm():
            numbers.append(signal.SIGUSR1)
        self._handlers = {number: signal.signal(number, self._note) for number in numbers}

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = signal.Signals(number)
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._restore_handlers()
        super().teardown(trainer, pl_module, stage)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if _accumulates(trainer):
            return
        # Any process may have been told, and all of them have to leave after the same update.
        told = trainer.strategy.reduce_boolean_decision(self._signal is not None, all=False)
        finished = trainer.global_step == trainer.max_steps  # no validation may follow on this one
        if told or finished:
            trainer.save_checkpoint(f"{self.dirpath}/last.ckpt")
        if told and not finished:
            self._leave(trainer)

    def _leave(self, trainer: pl.Trainer) -> None:
        name = self._signal.name if self._signal else "a signal"
        run = Path(str(self.dirpath)).parent
        trainer.print(
            f"Stopped by {name} after update {trainer.global_step}, which is saved: go on with "
            f"resume={run}"
        )
        if trainer.is_global_zero and self._signal == signal.SIGUSR1:
            launch.requeue()
        # The status that shells give to a signal. Another process's status other than 0 would be
        # taken for a crash by Lightning, which then kills the first.
        ended = 128 + (self._signal or signal.SIGTERM)
        raise SystemExit(ended if trainer.is_global_zero else 0)


def best_score(trainer: pl.Trainer) -> float | None:
    """The best value so far of the figure of which the best checkpoint is kept; None of none."""
    checkpoint = trainer.checkpoint_callback  # the first of them
    score = checkpoint.best_model_score if isinstance(checkpoint, ModelCheckpoint) else None
    return None if score is None else float(score)


def _accumulates(trainer: pl.Trainer) -> bool:
    """Whether the gradient of the next update has been gathered in part."""
    return bool((trainer.fit_loop.total_batch_idx + 1) % trainer.accumulate_grad_batches)
