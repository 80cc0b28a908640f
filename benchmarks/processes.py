"""What a second process is worth: updates a second of DDP in two processes against one process.

On the cores of a CPU, which one process of two threads has as well as two of one thread. The
trainings are those of `python src/train.py`, without what only watches, and take turns. Beside DDP
two processes train apart, half a batch each: what they lose is the cores' and Python's, and what
DDP loses beyond that is the exchange of gradients.

    python benchmarks/processes.py [stage=prior] [rounds=7] [any setting=value] [any key=value of
        conf/]
"""

import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import settings as command_line
import timing
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

import training
from tilewright import runs

DEFAULTS = {
    "stage": "prior",
    "dvae": None,  # of the prior: a run; null: the newest one that was trained on shapes
    "rounds": 7,
    "warmup": 10,  # updates
    "steps": 100,  # that are timed
    "processes": 2,
    "target": 0.85,
    "out": "logs/benchmarks/processes.json",
}


ALONE, APART = "one process", "apart"
DDP = {
    "DDP": "ddp",
    "DDP, gradients as views": {
        "_target_": "pytorch_lightning.strategies.DDPStrategy",
        "gradient_as_bucket_view": True,
        "static_graph": True,
    },
}


class Clock(pl.Callback):
    """Seconds of the updates that are timed."""

    def __init__(self, warmup: int):
        self.warmup = warmup
        self.seconds = self.began = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        now = time.perf_counter()
        if trainer.global_step == self.warmup:
            self.began = now
        self.seconds = now - self.began


def configuration(settings: DictConfig, overrides: list[str]) -> DictConfig:
    """That of the training; in a process of its own, as all that follows."""
    words = [f"stage={settings.stage}", *overrides]
    if settings.stage == "prior":
        logs = Path(training.configuration(words[:1]).paths.logs)
        dvae = runs.find(logs, "dvae", settings.dvae, data="shapes")
        network = runs.load_config(dvae).model.network
        words += [f"dvae='{dvae}'", f"image_tokens.grid={network.grid}"]
        words += [f"image_tokens.vocab={network.num_tokens}"]
    length = settings.warmup + settings.steps
    words += [f"trainer.max_steps={length}", "trainer.limit_val_batches=0"]
    config = training.configuration([*words, "trainer.accelerator=cpu", "logger={}"])
    config.trainer.log_every_n_steps = length
    return config


def train(
    rank: int, world: str, port: int, threads: int, settings: DictConfig, words: list[str], put: Any
) -> None:
    """A training by one of the processes of a world; the first puts the seconds that it took."""
    torch.set_num_threads(threads)
    config = configuration(settings, words)
    if world == APART:
        config.data.batch_size //= settings.processes
    if world in DDP:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
        config.trainer.devices = settings.processes
        config.trainer.strategy = DDP[world]
    pl.seed_everything(config.seed, verbose=False)
    data = instantiate(config.data)
    data.setup()
    if data.tokenizer is not None:
        data.tokenizer.train(caption for _, caption in data.examples("train", 1000))
    clock = Clock(settings.warmup)
    training.make_trainer(config, clock).fit(instantiate(config.model), data)
    if rank == 0:
        put.put(clock.seconds)


def seconds(world: str, settings: DictConfig, overrides: list[str]) -> float:
    """What the updates of one training take."""
    count = 1 if world == ALONE else settings.processes
    threads = settings.processes // count
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [
        context.Process(
            target=train, args=(rank, world, port, threads, settings, overrides, results)
        )
        for rank in range(count)
    ]
    for one in ranks:
        one.start()
    for one in ranks:
        one.join()
    if any(one.exitcode for one in ranks):
        sys.exit(f"error: {world} failed")
    return results.get()


def main() -> None:
    settings, overrides = command_line.read(DEFAULTS, __doc__)
    found: dict[str, list[float]] = {world: [] for world in (ALONE, *DDP, APART)}
    for number in range(settings.rounds):
        for world in found:
            found[world].append(seconds(world, settings, overrides))
        print(f"round {number + 1} of {settings.rounds}", flush=True)
    speeds = timing.speeds(found)
    timing.show_speeds(f"{settings.stage}: {settings.processes} processes", speeds)
    best = max((speed for speed in speeds if speed.name in DDP), key=lambda speed: speed.ratio)
    reached = "reached" if best.ratio >= settings.target else "missed"
    print(f"the target of {settings.target} is {reached}: {best.ratio:.2f} by {best.name}")
    timing.write(
        settings.out,
        speeds=speeds,
        settings=OmegaConf.to_container(settings),
        overrides=overrides,
    )


if __name__ == "__main__":
    main()
