"""Trainings on several processes, and the metrics that they logged."""

import csv
import multiprocessing
import os
import socket
import subprocess
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger

from helpers import tiny

ROOT = Path(__file__).parents[2]


class Notes(pl.Callback):
    """Which captions a process trains on, and the first number that each of its steps draws."""

    def __init__(self):
        self.captions, self.noise = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.captions += batch["caption"]
        self.noise.append(torch.rand(()).item())

    def on_train_end(self, trainer, module):
        notes = {"captions": self.captions, "noise": self.noise}
        torch.save(notes, Path(trainer.default_root_dir) / f"{trainer.global_rank}.notes")


def process(rank, port, stage, folder, arguments):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    if callable(arguments.get("strategy")):
        arguments["strategy"] = arguments["strategy"]()
    watch = [Notes(), *arguments.pop("watch", ())]
    tiny.train(stage, folder, watch=watch, **arguments)


def train(stage, folder, count, strategy="ddp", **arguments):
    """Trains by so many processes; how each of them ended."""
    arguments |= {"default_root_dir": folder, "logger": CSVLogger(folder, "", "")}
    if count > 1 or strategy != "ddp":
        arguments |= {"strategy": strategy, "devices": count}
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=process, args=(rank, port, stage, folder, arguments))
        for rank in range(count)
    ]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join()
    assert [one.exitcode for one in ranks] == [0] * count


KINDS = {"train", "validation", "codebook", "retrieval", "skipped"}  # of figures; not of seconds


def figures(folder):
    """What was logged: {(step, name): value}."""
    with (folder / "metrics.csv").open() as file:
        return {
            (int(row["step"]), name): float(value)
            for row in csv.DictReader(file)
            for name, value in row.items()
            if value and name.partition("/")[0] in KINDS
        }


def run(*words):
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
