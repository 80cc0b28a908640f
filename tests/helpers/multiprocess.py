"""Trainings on several processes, and the metrics that they log."""

import csv
import importlib
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger

from helpers import tiny

ROOT = Path(__file__).parents[2]
TIMEOUT = 240  # seconds of all processes together, which take a few on an idle machine


class Notes(pl.Callback):
    """Saves a process's training captions and the first random number of each step."""

    def __init__(self):
        self.captions, self.noise = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.captions += batch["caption"]
        self.noise.append(torch.rand(()).item())

    def on_train_end(self, trainer, module):
        notes = {"captions": self.captions, "noise": self.noise}
        torch.save(notes, Path(trainer.default_root_dir) / f"{trainer.global_rank}.notes")


# A fork of the test's process would fail after a backward pass, whose threads a fork does not copy.
# The server imports everything once, and never computes anything.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([tiny.__name__])


def _start_server():
    """Starts the server if it is not running. Before Python 3.13 it ignores this sys.path."""
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        forkserver.ensure_running()


def _train_rank(rank, port, stage, folder, arguments, errors):
    with errors.open("wb") as file:
        os.dup2(file.fileno(), 2)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    for name, value in arguments.pop("patches", {}).items():
        module, _, attribute = name.rpartition(".")
        setattr(importlib.import_module(module), attribute, value)
    if callable(arguments.get("strategy")):
        arguments["strategy"] = arguments["strategy"]()
    extra = [Notes(), *arguments.pop("extra_callbacks", ())]
    tiny.train(stage, folder, extra_callbacks=extra, **arguments)


def train(stage, folder, processes, strategy="ddp", **arguments):
    """Trains on a number of processes. Fails with their standard error if one of them fails.

    Args:
        strategy: name of a strategy, or a function that creates one in each process.
        arguments: those of `tiny.train`, and `patches`: values that replace those of dotted names
            in each process. Like callbacks, they must be importable from `helpers`.
    """
    arguments |= {"default_root_dir": folder, "logger": CSVLogger(folder, "", "")}
    if processes > 1 or strategy != "ddp":
        arguments |= {"strategy": strategy, "devices": processes}
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    _start_server()
    folder.mkdir(parents=True, exist_ok=True)
    errors = [folder / f"{rank}.stderr" for rank in range(processes)]
    ranks = [
        CONTEXT.Process(target=_train_rank, args=(rank, port, stage, folder, arguments, file))
        for rank, file in enumerate(errors)
    ]
    for rank in ranks:
        rank.start()
    end = time.monotonic() + TIMEOUT
    for rank in ranks:
        rank.join(max(end - time.monotonic(), 0))
    running = [index for index, rank in enumerate(ranks) if rank.is_alive()]
    for rank in ranks:
        rank.kill()
        rank.join()
    assert not running, f"ranks {running} were still training after {TIMEOUT} s"
    output = "\n".join(file.read_text() for file in errors)
    assert [rank.exitcode for rank in ranks] == [0] * processes, output


METRICS = {"train", "validation", "codebook", "retrieval", "skipped"}  # not speed: it varies


def logged_metrics(folder):
    """Returns the metrics that a training has logged, as {(step, name): value}."""
    with (folder / "metrics.csv").open() as file:
        return {
            (int(row["step"]), name): float(value)
            for row in csv.DictReader(file)
            for name, value in row.items()
            if value and name.partition("/")[0] in METRICS
        }


def run(*words):
    """Runs a program in the repository and returns its standard output. Fails if it fails."""
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
