"""Trainings that are killed and resumed until they are done, and what they have to end with."""

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

Training = Callable[[Path], Any]  # begins a training in a folder, or goes on with the one there

LAST = Path("checkpoints", "last.ckpt")
MOMENTS = ("before a checkpoint", "while one is written", "after one")


def start(train: Training, folder: Path) -> BaseProcess:
    """The training in a process of its own, which has loaded already what takes long to load."""
    training = multiprocessing.get_context("fork").Process(target=_train, args=(train, folder))
    training.start()
    return training


def _train(train: Training, folder: Path) -> None:
    torch.set_num_threads(1)  # threads that were at work before a fork are not there after it
    train(folder)


def whole(train: Training, folder: Path) -> float:
    """Trains without interruption; how many seconds it took."""
    began = time.monotonic()
    _end(start(train, folder))
    return time.monotonic() - began


def killed(
    train: Training, folder: Path, kills: int, took: float, moments: random.Random
) -> Counter[str]:
    """Trains, kills it so many times, and lets it come to its end; when the kills came.

    Every other one waits, from a random moment on, for a checkpoint that is being written.

    Args:
        took: seconds of the whole training; no kill comes later than that after a start.
    """
    found: Counter[str] = Counter()
    last = folder / LAST
    while found.total() < kills:
        training = start(train, folder)
        training.join(moments.uniform(0, took))
        if found.total() % 2:
            while training.is_alive() and not _part(last).exists():
                time.sleep(0.0005)
        training.kill()
        training.join()
        if training.exitcode == 0:  # it was faster: begin again
            shutil.rmtree(folder)
            found.clear()
            continue
        assert training.exitcode == -signal.SIGKILL
        if last.exists():
            assert torch.load(last, weights_only=True)["global_step"] > 0
        found[MOMENTS[1 if _part(last).exists() else 2 if last.exists() else 0]] += 1
    _end(start(train, folder))
    return found


def _end(training: BaseProcess) -> None:
    training.join()
    assert training.exitcode == 0


def _part(file: Path) -> Path:
    return file.with_name(f".{file.name}.part")


def differences(one: Path, other: Path) -> list[str]:
    """What two trainings ended with that is not the same to the bit; it names what."""
    expected, found = trained(one), trained(other)
    names = expected.keys() ^ found.keys()
    names |= {name for name in expected.keys() & found.keys() if _differ(expected, found, name)}
    return sorted(names)


def _differ(one: dict[str, Any], other: dict[str, Any], name: str) -> bool:
    if isinstance(one[name], torch.Tensor):
        return not torch.equal(one[name], other[name])
    return one[name] != other[name]


def trained(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of weights, averages, moments and rates, as one flat dictionary."""
    saved = torch.load(folder / LAST, weights_only=True)
    kept = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "callbacks")
    return dict(_flat({name: saved[name] for name in ("global_step", *kept)}))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _flat(item, f"{name}.{key}")
    elif "Checkpoint" not in name:  # paths
        yield name, value
