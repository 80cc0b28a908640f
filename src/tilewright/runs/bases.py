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
from tilewright.runs.folders import CONFIG, DVAE, MODEL_CONFIG, follow_latest, load_config

PEFT_CONFIG = "adapter_config.json"


def base_folder(folder: Path, config: DictConfig) -> Path:
    """Returns the folder of the base, after downloading it if `base.path` is a name on the Hub.

    A base that was moved or copied together with the run is found, too.

    Args:
        folder: folder of the run or adapter.
        config: its configuration, with a `base`.

    Raises:
        UserError: the base does not exist.
    """
    named = follow_latest(config.base.path)
    places = [named]
    if config.get("run") and named.is_absolute():
        places.append(Path(os.path.normpath(folder / os.path.relpath(named, config.run))))
    for place in places:
        if place.is_dir():
            return place.resolve()
    if not named.is_absolute():
        return hub.model_folder(named)
    file = CONFIG if (folder / CONFIG).is_file() else MODEL_CONFIG
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


def part(folder: Path, name: str) -> Path:
    """Returns a folder inside a run or model, or inside the base of an adapter without it.

    Raises:
        UserError: the base does not exist.
    """
    if not (folder / name).is_dir():
        config = load_config(folder)
        if config.get("base"):
            return part(base_folder(folder, config), name)
    return folder / name


def image_size(folder: Path) -> int:
    """Returns the side, in pixels, of the images that a run's network generates or reads."""
    is_prior = load_config(folder).stage == "prior"
    return load_config(part(folder, DVAE) if is_prior else folder).model.network.image_size
