"""Several processes that train one model: how many, which is the first, how the others join.

On one machine Lightning starts the others when the first has made the run's folder and begins to
train: they are told that folder and nothing else, so they cannot disagree about anything. Where
torchrun, SLURM or people start all of them, each reads the same command line, and the others wait
for the first. The first process alone writes the folder.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tilewright.errors import UserError
from tilewright.hardware import available_cpus

if TYPE_CHECKING:  # nothing heavy is imported before it is needed
    import pytorch_lightning as pl

log = logging.getLogger(__name__)

LEAST_SHARE = 8  # pictures of a batch below which one more process on a CPU is no gain


def joins(config: DictConfig) -> bool:
    """Whether the first process has started this one, for the run that the configuration names."""
    return "LOCAL_RANK" in os.environ and not OmegaConf.is_missing(config, "run")


def is_first() -> bool:
    """Whether this is the first process, by what a launcher says, before anything is built."""
    ranks = [os.environ.get(name, "0") for name in ("RANK", "SLURM_PROCID", "NODE_RANK")]
    return not any(int(rank) for rank in ranks)


def check(config: DictConfig) -> None:
    """Looks for what several processes cannot do.

    Raises:
        UserError: a sweep; or processes that are started one by one and would each make up a name.
    """
    if config.trainer.strategy == "auto" and config.trainer.num_nodes == 1:
        return
    job = HydraConfig.get()
    if job.mode is not None and job.mode.name == "MULTIRUN":
        raise UserError("--multirun trains each job in one process: leave out trainer=ddp")
    started = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    named = any(text.startswith("run_name=") for text in job.overrides.task)
    if (started > 1 or config.trainer.num_nodes > 1) and not named:
        raise UserError(
            "processes on several nodes, or of a launcher, need one name: run_name=NAME"
        )


def under_slurm() -> bool:
    """Whether SLURM has started this process, and can start it again."""
    return "SLURM_JOB_ID" in os.environ and "SLURM_NTASKS" in os.environ


def is_requeued() -> bool:
    """Whether SLURM has started this job before: the same command then goes on with its run."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def requeue() -> None:
    """Has SLURM start this job again."""
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("SLURM did not take job %s back (%s): start it again by hand", job, error)


def devices(config: DictConfig) -> int | str:
    """Lightning's devices; "auto" is every GPU, and on a CPU a process for each core.

    A CPU's processes have to share a batch evenly, and to have enough of it each.
    """
    wanted = config.trainer.devices
    if wanted != "auto":
        return wanted
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun's
        return int(os.environ["LOCAL_WORLD_SIZE"])
    import torch

    if config.trainer.accelerator != "cpu" and torch.accelerator.is_available():
        return wanted
    cores = available_cpus()
    batch = config.data.batch_size
    even = [n for n in range(1, cores + 1) if batch % n == 0 and batch >= n * LEAST_SHARE]
    return max(even, default=1)


def check_share(batch_size: int, processes: int) -> None:
    """Whether processes can share a batch.

    Raises:
        UserError: it is no number, or does not divide evenly.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise UserError(f"data.batch_size={batch_size} has to be a number, 1 or more")
    if batch_size % processes:
        raise UserError(
            f"data.batch_size={batch_size} is that of all processes together and cannot be shared "
            f"by {processes}: set it to a multiple, or trainer.devices to a divisor"
        )


def tell_others(run: Path, checkpoint: Path | None) -> None:
    """Makes this process's command line the one with which Lightning is to start the others."""
    debug = [word for word in sys.argv if word.startswith("debug=")]
    resume = "false" if checkpoint is None else _quoted(checkpoint)
    sys.argv[1:] = [f"run={_quoted(run)}", f"resume={resume}", *debug]


def _quoted(path: Path) -> str:
    """A path as Hydra reads it, whatever characters it has."""
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


@contextlib.contextmanager
def ended_together(trainer: "pl.Trainer") -> Iterator[None]:
    """Ends the processes that Lightning has started where this one fails.

    They would wait for it, and each report that it has gone.
    """
    try:
        yield
    except Exception:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)
        raise
