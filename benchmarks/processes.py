"""Speed of DDP with two processes on a CPU, against one process with two threads.

The trainings are those of `python src/train.py` without observers, and they take turns. Two
independent processes with half a batch each are measured too. Their loss of speed comes from the
cores and from Python; what DDP loses beyond that is the exchange of gradients.

    python benchmarks/processes.py [stage=prior] [rounds=7] [any setting=value] [any key=value of
        conf/]
"""

import multiprocessing
import os
import socket
import sys
import time
from typing import Any

import pytorch_lightning as pl
import settings as command_line
import timing
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

import training

DEFAULTS = {
    "stage": "prior",
    "dvae": None,  # for the prior: a run; null: the newest one on shapes
    "rounds": 7,
    "warmup": 10,  # updates
    "steps": 100,  # timed updates
    "processes": 2,
    "target": 0.85,
    "out": "logs/benchmarks/processes.json",
}


SINGLE, INDEPENDENT = "one process", "independent"
DDP = {
    "DDP": "ddp",
    "DDP, gradients as views": {
        "_target_": "pytorch_lightning.strategies.DDPStrategy",
        "gradient_as_bucket_view": True,
        "static_graph": True,
    },
}


class Clock(pl.Callback):
    """Measures the seconds of the timed updates."""

    def __init__(self, warmup: int):
        self.warmup = warmup
        self.seconds = self.start = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        now = time.perf_counter()
        if trainer.global_step == self.warmup:
            self.start = now
        self.seconds = now - self.start


def configuration(settings: DictConfig, overrides: list[str]) -> DictConfig:
    """Returns the configuration of the training."""
    words = [f"stage={settings.stage}", *overrides]
    if settings.stage == "prior":
        words += training.dvae_settings(settings.dvae, overrides)
    length = settings.warmup + settings.steps
    words += [f"trainer.max_steps={length}", "trainer.limit_val_batches=0"]
    config = training.configuration([*words, "trainer.accelerator=cpu", "logger={}"])
    config.trainer.log_every_n_steps = length
    return config


def train(
    rank: int,
    mode: str,
    port: int,
    threads: int,
    settings: DictConfig,
    words: list[str],
    queue: Any,
) -> None:
    """Trains in one of the processes; the first one puts its seconds into a queue."""
    torch.set_num_threads(threads)
    config = configuration(settings, words)
    if mode == INDEPENDENT:
        config.data.batch_size //= settings.processes
    if mode in DDP:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
        config.trainer.devices = settings.processes
        config.trainer.strategy = DDP[mode]
    pl.seed_everything(config.seed, verbose=False)
    data = instantiate(config.data)
    data.setup()
    if data.tokenizer is not None:
        data.tokenizer.train(caption for _, caption in data.examples("train", 1000))
    clock = Clock(settings.warmup)
    training.make_trainer(config, clock).fit(instantiate(config.model), data)
    if rank == 0:
        queue.put(clock.seconds)


def time_training(mode: str, settings: DictConfig, overrides: list[str]) -> float:
    """Returns the seconds of the timed updates of one training."""
    count = 1 if mode == SINGLE else settings.processes
    threads = settings.processes // count
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [
        context.Process(
            target=train, args=(rank, mode, port, threads, settings, overrides, results)
        )
        for rank in range(count)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        sys.exit(f"error: {mode} failed")
    return results.get()


def main() -> None:
    settings, overrides = command_line.parse_known(DEFAULTS, __doc__)
    seconds: dict[str, list[float]] = {mode: [] for mode in (SINGLE, *DDP, INDEPENDENT)}
    for index in range(settings.rounds):
        for mode in seconds:
            seconds[mode].append(time_training(mode, settings, overrides))
        print(f"round {index + 1} of {settings.rounds}", flush=True)
    speeds = timing.speeds(seconds)
    timing.print_speeds(f"{settings.stage}: {settings.processes} processes", speeds)
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
