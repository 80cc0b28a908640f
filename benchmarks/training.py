"""This project's training as in `python src/train.py`, without callbacks that only observe."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytorch_lightning as pl
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from tilewright import runs
from tilewright.cli import app
from tilewright.hardware import resolve_precision

# Callbacks that take time and do not change the training.
OBSERVERS = {
    "progress_bar", "progress_line", "tensorboard", "throughput", "skipped_rows", "health",
    "overfitting", "best", "last", "reconstructions", "codebook_usage", "samples", "frechet",
}  # fmt: skip


def configuration(overrides: Iterable[str]) -> DictConfig:
    """Returns the configuration of `python src/train.py` with these settings."""
    with initialize_config_dir(str(app.CONF), version_base="1.3"):
        config = compose("train", [*overrides, "run=unused"])
    OmegaConf.set_struct(config, False)
    for name in OBSERVERS & set(config.callbacks):
        del config.callbacks[name]
    return config


def dvae_settings(dvae: str | None, overrides: Sequence[str]) -> list[str]:
    """Returns the settings that give a dVAE to a prior.

    Args:
        dvae: a run; None takes the newest one on shapes.
        overrides: the other settings of the prior.
    """
    logs = Path(configuration(["stage=prior", *overrides]).paths.logs)
    run = runs.find(logs, "dvae", dvae, runs.TrainingData("shapes"))
    network = runs.load_config(run).model.network
    return [
        f"dvae='{run}'",
        f"image_tokens.grid={network.grid}",
        f"image_tokens.vocab={network.num_tokens}",
    ]


def make_trainer(config: DictConfig, *callbacks: pl.Callback) -> pl.Trainer:
    """Returns a Trainer that writes no files, with these callbacks before its own."""
    return instantiate(
        config.trainer,
        precision=resolve_precision(config.trainer.precision),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[*callbacks, *filter(None, instantiate(config.callbacks).values())],
    )
