"""Trainings that are killed and resumed until they are complete, and comparisons of the results."""

import multiprocessing
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

Training = Callable[[Path], Any]  # starts a training in a folder, or resumes the one there

LAST = Path("checkpoints", "last.ckpt")
MOMENTS = ("before a checkpoint", "while one is written", "after one")
TIMEOUT = 240  # seconds of one process, which takes a few on an idle machine


def start(train: Training, folder: Path) -> BaseProcess:
    """Starts a training in a forked process, which has already imported everything."""
    process = multiprocessing.get_context("fork").Process(target=_train, args=(train, folder))
    process.start()
    return process


def _train(train: Training, folder: Path) -> None:
    torch.set_num_threads(1)  # a fork does not copy the threads of a pool
    train(folder)


def join(process: BaseProcess, timeout: float = TIMEOUT) -> int:
    """Waits for a process and returns its exit code. Kills it and fails after `timeout` seconds."""
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"process {process.pid} was still running after {timeout:.0f} s")
    return process.exitcode


def wait_for_file(path: Path, process: BaseProcess, timeout: float = TIMEOUT) -> None:
    """Waits until a process has written a file. Fails if the process ends or takes too long."""
    end = time.monotonic() + timeout
    while not path.exists():
        if not process.is_alive():
            raise AssertionError(
                f"the process ended with status {process.exitcode} before it wrote {path}"
            )
        if time.monotonic() > end:
            process.kill()
            raise AssertionError(f"{path} was not written within {timeout:.0f} s")
        time.sleep(0.01)


def train_uninterrupted(train: Training, folder: Path) -> float:
    """Trains without interruption, and returns the duration in seconds."""
    began = time.monotonic()
    assert join(start(train, folder)) == 0
    return time.monotonic() - began


def train_with_kills(
    train: Training, folder: Path, kills: int, duration: float, rng: random.Random
) -> Counter[str]:
    """Trains with a number of kills, then to the end, and counts the kills by their moment.

    Every second kill waits, after a random time, until a checkpoint is being written.

    Args:
        duration: seconds from a start to the latest kill.
    """
    moments: Counter[str] = Counter()
    last = folder / LAST
    temporary = temporary_file(last)
    while moments.total() < kills:
        left_over = _modified(temporary)  # by a killed process
        process = start(train, folder)
        process.join(rng.uniform(0, duration))
        if moments.total() % 2:
            deadline = time.monotonic() + TIMEOUT
            while process.is_alive() and _modified(temporary) in (None, left_over):
                assert time.monotonic() < deadline, f"no checkpoint within {TIMEOUT} s"
                time.sleep(0.0005)
        process.kill()
        if join(process) == 0:  # complete before the kill: start again
            shutil.rmtree(folder)
            moments.clear()
            continue
        assert process.exitcode == -signal.SIGKILL
        if last.exists():
            assert torch.load(last, weights_only=True)["global_step"] > 0
        was_writing = _modified(temporary) not in (None, left_over)
        moments[MOMENTS[1 if was_writing else 2 if last.exists() else 0]] += 1
    assert join(start(train, folder)) == 0
    return moments


def temporary_file(path: Path) -> Path:
    """Returns the file that `tilewright.files.atomic_file` writes before it renames it."""
    return path.with_name(f".{path.name}.tmp")


def _modified(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def differences(expected: Path, actual: Path) -> list[str]:
    """Returns the names of all values in which two trainings' last checkpoints differ."""
    a, b = checkpoint_values(expected), checkpoint_values(actual)
    names = a.keys() ^ b.keys()
    names |= {name for name in a.keys() & b.keys() if not _equal(a[name], b[name])}
    return sorted(names)


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def checkpoint_values(folder: Path) -> dict[str, Any]:
    """Returns the last checkpoint's weights, averages, optimizer states and rates by name."""
    saved = torch.load(folder / LAST, weights_only=True)
    keys = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "callbacks")
    return dict(_flatten({name: saved[name] for name in ("global_step", *keys)}))


def _flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _flatten(item, f"{name}.{key}")
    elif "Checkpoint" not in name:  # holds paths
        yield name, value
