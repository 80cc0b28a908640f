"""Launching a training on several processes.

On one machine, the first process creates the run's folder, and Lightning then starts the others
with that folder as their only argument. They read all settings from it, so that the processes
cannot disagree. With torchrun, SLURM or a manual start, every process reads the same command line,
and the others wait for the first. Only the first process writes to the folder.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tilewright.checks import check_whole
from tilewright.errors import UserError
from tilewright.hardware import available_cpus, has_trainer_gpu

if TYPE_CHECKING:  # keeps the import of this module fast
    import pytorch_lightning as pl

log = logging.getLogger(__name__)

MIN_ROWS_PER_PROCESS = 8  # with fewer batch rows, another process on a CPU is useless


def is_child(keys: Collection[str]) -> bool:
    """Returns True if the first process has started this one, whose command line sets `keys`."""
    return "LOCAL_RANK" in os.environ and "run" in keys  # see `set_child_arguments`


def is_first() -> bool:
    """Returns True in the first process. Reads the launcher's variables, before any setup."""
    ranks = [os.environ.get(name, "0") for name in ("RANK", "SLURM_PROCID", "NODE_RANK")]
    return not any(int(rank) for rank in ranks)


def check_launch(config: DictConfig, needs_name: bool = True) -> None:
    """Checks settings that do not work with several processes.

    Args:
        needs_name: True for a new run, which all processes must name alike.

    Raises:
        UserError: the job is part of a sweep, or a launcher's processes have no common run name.
            Or the trainer has one process, and a launcher has started several.
    """
    if not _starts_several(config.trainer):
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise UserError(
                f"the launcher has started {os.environ['WORLD_SIZE']} processes, and the trainer "
                "has one: set trainer=ddp or trainer=fsdp"
            )
        return
    job = HydraConfig.get()
    if job.mode is not None and job.mode.name == "MULTIRUN":
        raise UserError(
            "a sweep trains each run in one process: leave out trainer.strategy, trainer.devices, "
            "trainer.num_nodes and a trainer= that starts several"
        )
    processes = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    has_name = any(text.startswith("run_name=") for text in job.overrides.task)
    if needs_name and (processes > 1 or config.trainer.num_nodes > 1) and not has_name:
        raise UserError(
            "the processes of a launcher or of several nodes need one run name: set run_name=NAME"
        )


def _starts_several(trainer: DictConfig) -> bool:
    """Returns True if a trainer may have several processes."""
    devices = trainer.devices
    has_one_device = devices == 1 or (OmegaConf.is_list(devices) and len(devices) == 1)
    return trainer.strategy != "auto" or trainer.num_nodes > 1 or not has_one_device


def is_under_slurm() -> bool:
    """Returns True if SLURM has started this process and can queue its job again."""
    return "SLURM_JOB_ID" in os.environ and "SLURM_NTASKS" in os.environ


def is_requeued() -> bool:
    """Returns True if SLURM has started this job before. It then continues its run."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def requeue() -> None:
    """Asks SLURM to queue this job again."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("SLURM did not requeue job %s (%s): submit it again", job, error)


@contextlib.contextmanager
def requeue_on_signal() -> Iterator[None]:
    """Context in which SLURM's signal queues the job again and ends this process.

    It covers the time before a training starts, which has nothing to save. `LastCheckpoint` then
    replaces the handler.
    """
    if not is_under_slurm():
        yield
        return
    process = os.getpid()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            return  # a forked worker inherits the handler
        if is_first():
            requeue()
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGUSR1, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, previous)


def devices(config: DictConfig) -> int | str:
    """Returns Lightning's `devices`. "auto" means all GPUs, or at most one process per CPU core.

    The number of CPU processes divides the batch and leaves `MIN_ROWS_PER_PROCESS` rows to each.
    """
    requested = config.trainer.devices
    if requested != "auto":
        return requested
    if "LOCAL_WORLD_SIZE" in os.environ:  # set by torchrun
        return int(os.environ["LOCAL_WORLD_SIZE"])
    if has_trainer_gpu(config.trainer.accelerator):
        return requested
    batch_size = config.data.batch_size
    counts = [
        count
        for count in range(1, available_cpus() + 1)
        if batch_size % count == 0 and batch_size >= count * MIN_ROWS_PER_PROCESS
    ]
    return max(counts, default=1)


def check_batch_size(batch_size: int, processes: int) -> None:
    """Checks that the processes can share a batch.

    Raises:
        UserError: the batch size is not a positive integer, or the processes do not divide it.
    """
    check_whole("data.batch_size", batch_size)
    if batch_size % processes:
        raise UserError(
            f"data.batch_size={batch_size}, the batch of all processes together, cannot be divided "
            f"by {processes} processes: set it to a multiple, or trainer.devices to a divisor"
        )


def check_nodes(trainer: "pl.Trainer") -> None:
    """Checks that something connects the nodes. Otherwise, this process waits forever.

    Raises:
        UserError: there are several nodes, no launcher, and none of its variables.
    """
    from pytorch_lightning.plugins.environments import LightningEnvironment

    environment = getattr(trainer.strategy, "cluster_environment", None)
    has_address = not {"MASTER_ADDR", "NODE_RANK"}.isdisjoint(os.environ)
    if trainer.num_nodes > 1 and isinstance(environment, LightningEnvironment) and not has_address:
        raise UserError(
            f"trainer.num_nodes={trainer.num_nodes} needs a launcher that starts this command on "
            "every node: use torchrun or srun, or set MASTER_ADDR, MASTER_PORT and NODE_RANK on "
            "each node"
        )


def set_child_arguments(run: Path, checkpoint: Path | None) -> None:
    """Replaces this process's command line, which Lightning copies to start the other processes."""
    resume = "false" if checkpoint is None else str(checkpoint)
    # Any option shows tracebacks. The one on the command line may need its --config-dir.
    has_debug = any(word.startswith("debug=") for word in sys.argv)
    sys.argv[1:] = [f"run={run}", f"resume={resume}", *["debug=default"] * has_debug]


@contextlib.contextmanager
def kill_children_on_error(trainer: "pl.Trainer") -> Iterator[None]:
    """Context that kills the processes that Lightning has started if this one fails.

    Otherwise they would wait for it, and each would report a lost connection.
    """
    try:
        yield
    except Exception:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)
        raise
