"""Bases of adapters: the runs and models whose weights adapters change.

A run with adapters, and an adapter that is exported alone, hold no weights of their base. Their
configuration names it by `base.path`, and `base.digest` identifies its weights.
"""

import json
import os
from pathlib import Path

from omegaconf import DictConfig

from tilewright import files
from tilewright.errors import UserError
from tilewright.runs import hub
from tilewright.runs.folders import (
    CONFIG,
    DVAE,
    MODEL_CONFIG,
    follow_latest,
    load_config,
)

PEFT_CONFIG = "adapter_config.json"


def base_folder(folder: Path, config: DictConfig, above: tuple[Path, ...] = ()) -> Path:
    """Returns the folder of the base, after downloading it if `base.path` is a name on the Hub.

    A base that was moved or copied together with the run is found, too.

    Args:
        folder: folder of the run or adapter.
        config: its configuration, with a `base`.
        above: folders whose chain of bases leads to this one.

    Raises:
        UserError: the base does not exist, or is this folder or one above it.
    """
    base = _find_base(folder, config)
    if base.resolve() in {path.resolve() for path in (folder, *above)}:
        raise UserError(f"{folder} has adapters of itself: set base.path to a run or model")
    return base


def _find_base(folder: Path, config: DictConfig) -> Path:
    named = follow_latest(config.base.path)
    places = [named]
    if config.get("run") and named.is_absolute():
        # A relative `run` was below the working directory, which may be any folder above the base.
        former = [parent / config.run for parent in reversed(named.parents)]
        places += [Path(os.path.normpath(folder / os.path.relpath(named, f))) for f in former]
    for place in places:
        if place.is_dir():
            return place.resolve()
    file = CONFIG if (folder / CONFIG).is_file() else MODEL_CONFIG
    if not named.is_absolute():
        try:
            return hub.model_folder(named)
        except UserError as error:
            raise UserError(
                f"{folder} has adapters of a base that cannot be loaded ({error}): publish or "
                f"download it, or set base.path in {folder / file} to its folder"
            ) from error
    raise UserError(
        f"{folder} has adapters of {named}, which does not exist: move that folder back, or set "
        f"base.path in {folder / file} to its new place"
    )


def name_base(folder: Path, name: str) -> None:
    """Writes the name of the base on the Hub into the files of an exported adapter."""
    config = json.loads((folder / MODEL_CONFIG).read_text())
    config["base"]["path"] = name
    peft = json.loads((folder / PEFT_CONFIG).read_text())
    peft["base_model_name_or_path"] = name
    for file, content in ((MODEL_CONFIG, config), (PEFT_CONFIG, peft)):
        files.write_atomically(folder / file, json.dumps(content, indent=2) + "\n")


def dvae_folder(prior: Path, above: tuple[Path, ...] = ()) -> Path:
    """Returns the folder of a prior's dVAE. That of an exported adapter is inside its base.

    Args:
        above: folders whose chain of bases leads to this one.

    Raises:
        UserError: the base does not exist, or is an adapter of itself.
    """
    if not (prior / DVAE).is_dir():
        config = load_config(prior)
        if config.get("base"):
            return dvae_folder(base_folder(prior, config, above), (*above, prior))
    return prior / DVAE


def dvae_config(folder: Path) -> DictConfig:
    """Returns the configuration of the dVAE of a run, or of a run that is one."""
    config = load_config(folder)
    return load_config(dvae_folder(folder)) if config.stage == "prior" else config


def image_size(folder: Path) -> int:
    """Returns the side, in pixels, of the images that a run's network generates or reads."""
    return dvae_config(folder).model.network.image_size
