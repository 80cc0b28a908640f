"""Reconstruction of emoji after equal training time: this project's dVAE and DALLE-pytorch's.

Both train on the same images (64x64, an 8x8 grid, K = 512) and the same number of threads, one
after the other. Ours is first, with the data and schedules of `experiment=dvae_emoji`, and with the
paper's loss on patches of 8x8 pixels, because PSNR is a squared error. A short timing estimates
how many steps fit into the minutes, and the schedules span these steps. DALLE-pytorch's then gets
the time that ours took. PSNR and codebook use are of hard codes, over the validation split.

    python benchmarks/dvae_quality.py minutes=10 [peer.batch_size=32] [any key=value of conf/]
"""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import peers
import pytorch_lightning as pl
import settings as command_line
import timing
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torchvision.utils import make_grid

import training
from tilewright.cli import app
from tilewright.cli.messages import one_line_errors
from tilewright.data import CaptionedImages
from tilewright.metrics.reconstruction import CodebookUsage, ReconstructionMetrics
from tilewright.viz.images import save_png, upscale_small

TASK = [
    "experiment=dvae_emoji",
    "loss=elbo",
    "model.network.patch=8",
    "model.network.n_hid=256",
]
DEFAULTS = {
    "minutes": 5.0,
    "timed_steps": 40,  # for the estimate of steps
    "threads": None,  # null: torch's default
    "out": "logs/benchmarks/dvae_quality.json",
    # Network of DALLE-pytorch's README, training defaults of its train_vae.py.
    "peer": {
        "codebook_dim": 512,
        "hidden_dim": 64,
        "num_resnet_blocks": 1,
        "straight_through": False,
        "kl_div_loss_weight": 0.0,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "learning_rate_decay": 0.98,  # every 100 steps of an epoch, like the temperature
        "temperature": 1.0,
        "temperature_min": 0.5,
        "temperature_anneal": 1e-6,
    },
}


@dataclass
class Trained:
    """A trained dVAE on the CPU, with the cost of its training."""

    name: str
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    steps: int
    seconds: float
    device: torch.device


def configuration(overrides: list[str], steps: int) -> DictConfig:
    """Returns the configuration of `python src/train.py` without validations and observers."""
    length = [f"trainer.max_steps={steps}", "trainer.limit_val_batches=0"]
    return training.configuration([*TASK, *overrides, *length])


def train_ours(overrides: list[str], steps: int) -> Trained:
    """Trains this project's dVAE."""
    config = configuration(overrides, steps)
    pl.seed_everything(config.seed, verbose=False)
    data = instantiate(config.data)
    data.setup()
    module = instantiate(config.model)
    trainer = training.make_trainer(config)
    start = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - start
    device = trainer.strategy.root_device
    network = module.network.eval().cpu()
    return Trained("Tilewright", network.encode, network.decode, steps, seconds, device)


def steps_in(seconds: float, overrides: list[str], timed: int) -> int:
    """Estimates the steps that fit, from two short trainings whose difference has no startup."""
    short, long = (train_ours(overrides, steps).seconds for steps in (timed // 4, timed))
    each = (long - short) / (timed - timed // 4)
    return max(round(seconds / each), 1)


def train_peer(
    dalle_pytorch: ModuleType, config: DictConfig, recipe: DictConfig, like: Trained
) -> Trained:
    """Trains DALLE-pytorch's dVAE as its train_vae.py, for the time and on the device of ours."""
    pl.seed_everything(config.seed, verbose=False)
    network_config = config.model.network
    names = ("codebook_dim", "hidden_dim", "num_resnet_blocks", "straight_through")
    vae = dalle_pytorch.DiscreteVAE(
        image_size=network_config.image_size,
        num_tokens=network_config.num_tokens,
        num_layers=int(math.log2(network_config.image_size / network_config.grid)),
        kl_div_loss_weight=recipe.kl_div_loss_weight,
        **{name: recipe[name] for name in names},
    ).to(like.device)
    data = instantiate(config.data, batch_size=recipe.batch_size)
    data.setup()
    optimizer = torch.optim.Adam(vae.parameters(), lr=recipe.learning_rate)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, recipe.learning_rate_decay)
    temperature, steps = recipe.temperature, 0
    start = time.perf_counter()
    while time.perf_counter() - start < like.seconds:
        for index, batch in enumerate(data.train_dataloader()):
            loss = vae(batch["image"].to(like.device), return_loss=True, temp=temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if index % 100 == 0:
                temperature *= math.exp(-recipe.temperature_anneal * steps)
                temperature = max(temperature, recipe.temperature_min)
                scheduler.step()
            steps += 1
            if time.perf_counter() - start >= like.seconds:
                break
    seconds = time.perf_counter() - start
    vae.eval().cpu()

    def decode(tokens: Tensor) -> Tensor:  # its decoder returns [-1, 1]
        return (vae.decode(tokens) * 0.5 + 0.5).clamp(0, 1).contiguous()

    encode = vae.get_codebook_indices
    return Trained("DALLE-pytorch 1.6.6", encode, decode, steps, seconds, like.device)


@torch.no_grad()
def measure(trained: Trained, data: CaptionedImages, num_tokens: int) -> dict[str, Any]:
    """Returns PSNR, SSIM and codebook use over the validation split."""
    metrics, codebook = ReconstructionMetrics(), CodebookUsage(num_tokens)
    count = 0
    for batch in data.val_dataloader():
        images = batch["image"]
        tokens = trained.encode(images)
        metrics.update(trained.decode(tokens), images)
        codebook.update(tokens)
        count += len(images)
    results = {**metrics.compute(), **codebook.compute()}
    return {
        "name": trained.name,
        **{name: float(value) for name, value in results.items()},
        "images": count,
        "steps": trained.steps,
        "seconds": trained.seconds,
    }


def main() -> None:
    settings, overrides = command_line.parse_known(DEFAULTS, __doc__)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    app.ignore_warnings()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    steps = steps_in(settings.minutes * 60, overrides, settings.timed_steps)
    trained = [train_ours(overrides, steps)]
    config = configuration(overrides, steps)
    dalle_pytorch = peers.load("dalle_pytorch")
    if dalle_pytorch is not None:
        trained.append(train_peer(dalle_pytorch, config, settings.peer, trained[0]))

    data = instantiate(config.data)
    results = [measure(dvae, data, config.model.network.num_tokens) for dvae in trained]
    names = ("psnr", "ssim", "usage", "perplexity", "steps", "seconds")
    rows = [[row["name"], *(f"{row[name]:.4g}" for name in names)] for row in results]
    note = f"{results[0]['images']} validation images, hard codes"
    timing.print_table("dVAEs after equal training time", ["dVAE", *names], rows, note)
    images = torch.stack([image for image, _ in data.examples("validation", 8)])
    with torch.no_grad():
        reconstructions = [dvae.decode(dvae.encode(images)) for dvae in trained]
    grid = make_grid(
        upscale_small(torch.cat([images, *reconstructions])), nrow=8, padding=4, pad_value=0.5
    )
    save_png(grid, Path(settings.out).with_suffix(".png"))
    timing.write(
        settings.out,
        results=results,
        settings=OmegaConf.to_container(settings),
        overrides=overrides,
        config=OmegaConf.to_container(config, resolve=True),
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
