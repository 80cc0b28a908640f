"""Settings of this command line: chosen options, overrides, names, and missing values."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from tilewright import files, runs
from tilewright.checks import MAX_SEED, check_flag, check_whole, format_value
from tilewright.cli import text_values
from tilewright.configs import escape
from tilewright.errors import UserError
from tilewright.training.schedules import FIRST_VALUE

# Keys that name a run or a sweep. They do not describe the training.
RUN_NAMES = {"resume", "run_name", "run", "sweep"}
# Keys with the value `auto`, even if an option such as sampling=paper sets a number.
AUTO_KEYS = {"temperature", "top_k", "top_p", "guidance", "compile"}


def choices() -> dict[str, str]:
    """Returns the option chosen in each config group: {"data": "shapes", ...}."""
    return {
        group: option
        for group, option in HydraConfig.get().runtime.choices.items()
        if option and group not in RUN_NAMES and not group.startswith(("hydra/", "_"))
    }


def options(group: str) -> list[str]:
    """Returns all options of a config group, including those of --config-dir."""
    names = GlobalHydra.instance().config_loader().get_group_options(group)
    return sorted(name for name in names if not name.startswith("_"))


def overrides() -> list[str]:
    """Returns the `key=value` arguments of this command line, without those that name the run."""
    return [text for text in _arguments() if runs.override_key(text) not in RUN_NAMES]


def is_typed(key: str) -> bool:
    """Returns True if this command line sets a key."""
    return key in typed_keys()


def typed_keys() -> list[str]:
    """Returns the keys and groups that this command line sets."""
    return list(map(runs.override_key, _arguments()))


def _arguments() -> list[str]:
    arguments: Any = OmegaConf.to_container(HydraConfig.get().overrides.task)
    return list(map(text_values.from_hydra, arguments))


def check_values(config: DictConfig, config_name: str) -> None:
    """Checks that each value of this command line has the type of its default in conf/.

    `null` switches many settings off. `trainer_settings` checks the keys of `trainer`, and text is
    checked where it is used.

    Raises:
        UserError: a key does not exist, or its value has another type.
    """
    arguments = _arguments()
    groups = [text for text in arguments if runs.override_key(text) in choices()]
    values = [text for text in arguments if text not in groups]
    defaults = hydra.compose(config_name, groups) if values else config
    for argument in values:
        key = runs.override_key(argument)
        if argument.startswith("+") and key.partition(".")[0] not in defaults:
            raise UserError(f"{key} is not a key, and {argument} has no effect: leave it out")
        default, value = (
            OmegaConf.select(source, key, throw_on_resolution_failure=False)
            for source in (defaults, config)
        )
        if value is None and _is_required(defaults, key):
            raise UserError(f"{key} has no value: set it on the command line, {key}=…")
        if value == "" and text_values.needs_text(key):
            raise UserError(f"{key}= is empty: set a value, or leave {key} out")
        if isinstance(value, str) and text_values.is_new_folder(key):
            _check_local(key, value)
        if not key.startswith("trainer.") and text_values.reserved_words(key) is None:
            _check_kind(key, default, value)
    check_whole("seed", config.seed, 0, MAX_SEED)


def _check_local(key: str, path: str) -> None:
    """Checks that a folder to write to is not an address.

    Raises:
        UserError: it is.
    """
    if re.match(r"\w+://", path):
        raise UserError(f"{key}={path} is an address: set a folder of this machine")


def _is_required(defaults: DictConfig, key: str) -> bool:
    branch, _, name = key.rpartition(".")
    node = OmegaConf.select(defaults, branch) if branch else defaults
    return isinstance(node, DictConfig) and OmegaConf.is_missing(node, name)


def _check_kind(key: str, default: Any, value: Any) -> None:
    """Checks that a value is a number, a flag, a list or a mapping if its default is one."""
    if value == "auto" and key in AUTO_KEYS:
        return
    is_number = isinstance(default, int | float) and not isinstance(default, bool)
    if value is None and not (is_number and "." not in key):
        return
    if is_number:
        kind = "a whole number" if isinstance(default, int) else "a number"
        allowed: Any = int if isinstance(default, int) else int | float
        if not isinstance(value, allowed) or isinstance(value, bool):
            raise UserError(
                f"{key}={format_value(value)} is not {kind}: set one, such as {key}={default}"
            )
    elif isinstance(default, bool):
        check_flag(key, value)
    elif isinstance(default, DictConfig) and not isinstance(value, DictConfig):
        names = list(_leaves(default)) or ["KEY"]
        first = [name for name in names if name.rpartition(".")[2] in FIRST_VALUE]
        raise UserError(
            f"{key}={value} does not fit, because {key} has keys: set one, "
            f"{key}.{(first or names)[0]}=…"
        )
    elif isinstance(default, ListConfig) and isinstance(value, str):
        raise UserError(f"{key}={value} is not a list: write {key}=[{value}]")
    elif isinstance(default, str) and OmegaConf.is_config(value):
        raise UserError(f"{key}={value} is not one value: set one, such as {key}={default}")


def _leaves(config: DictConfig) -> Iterator[str]:
    """Yields the keys of a branch's values, without private ones such as `_target_`."""
    for name, value in config.items():
        key = str(name)
        if isinstance(value, DictConfig):
            yield from (f"{key}.{leaf}" for leaf in _leaves(value))
        elif not key.startswith("_"):
            yield key


def job_name(name: str) -> str:
    """Returns the name of a run or folder. A job of a sweep has its index appended."""
    return f"{name}_{HydraConfig.get().job.num}" if is_sweep() else name


def is_sweep() -> bool:
    """Returns True in a job of a sweep."""
    mode = HydraConfig.get().mode
    return mode is not None and mode.name == "MULTIRUN"


def command_line() -> list[str]:
    """Returns the arguments of this run, without the other jobs of a sweep."""
    if not is_sweep():
        return sys.argv[1:]
    sources = HydraConfig.get().runtime.config_sources
    folders = [f"--config-dir={s.path}" for s in sources if s.provider == "command-line"]
    return [*folders, *overrides()]


def check_folder(folder: Path, advice: str) -> None:
    """Checks that no file is in the place of a folder.

    Raises:
        UserError: a file is there. The message ends with the advice.
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise UserError(f"{existing} is a file in the place of a folder: {advice}")


def check_absent(key: str, folder: Path) -> None:
    """Checks that a folder does not exist yet.

    Raises:
        UserError: it exists.
    """
    if folder.exists():
        raise UserError(f"{key}={folder} exists: name another folder, or remove it")


def make_encoder_absolute(config: DictConfig) -> None:
    """Makes the path of a text encoder's folder absolute, because a run may be used anywhere."""
    path = OmegaConf.select(config, "caption.path")
    if isinstance(path, str):
        config.caption.path = escape(files.absolute_folder(path))


def check_complete(config: DictConfig) -> None:
    """Checks that every key has a value and that every interpolation resolves.

    Raises:
        UserError: a mandatory key has no value, or images have no size.
    """
    if "image_size" in (config.get("data") or {}):
        check_whole("data.image_size", config.data.image_size)  # other settings derive from it
    check_no_missing(config)
    OmegaConf.to_container(config, resolve=True)


def check_no_missing(config: DictConfig) -> None:
    """Checks that every mandatory key of a configuration, or of a branch of it, has a value.

    Raises:
        UserError: a mandatory key has no value.
    """
    missing = OmegaConf.missing_keys(config)
    if missing:
        key = min(missing)  # from the root, also for a branch
        raise UserError(f"{key} has no value: set it on the command line, {key}=…")


def fill_in_sampling(config: DictConfig, run: Path) -> None:
    """Sets the sampling keys that are `auto` to the values that a prior's run recommends."""
    for key, value in vars(runs.load_sampling(run)).items():
        if config[key] == "auto":
            config[key] = value


def training_data(config: DictConfig) -> runs.TrainingData | None:
    """Returns the dataset that this command line chooses, or None if it chooses none."""
    name = choices().get("data")
    return runs.TrainingData.from_settings(name, config.data) if name else None


def find_dvae(config: DictConfig) -> Path:
    """Returns the dVAE at the path `dvae=`, or the newest one of the same data and image size.

    Raises:
        UserError: no such dVAE exists.
    """
    return runs.find(
        Path(config.paths.logs),
        "dvae",
        config.dvae,
        data=training_data(config),
        image_size=OmegaConf.select(config, "data.image_size"),
    )


def set_ranker_run(config: DictConfig, prior: Path) -> None:
    """Sets `config.ranker.run` to the ranker of a prior, unless the user has named one.

    The ranker stored with the prior comes first, then the newest one that fits the prior.

    Raises:
        UserError: no ranker exists, or `ranker=none`.
    """
    if config.ranker._target_ is None:
        raise UserError("ranker=none cannot rank: choose a ranker, or leave best_of out")
    if "run" not in config.ranker:
        return
    path = config.ranker.run
    if path is None and (prior / runs.RANKER).is_dir():
        path = str(prior / runs.RANKER)
    config.ranker.run = escape(str(find_ranker(Path(config.paths.logs), prior, path)))


def find_ranker(logs: Path, prior: Path, path: str | None = None) -> Path:
    """Returns the ranker at a path, or the newest one of a prior's data and image size.

    Raises:
        UserError: no such ranker exists.
    """
    data = runs.TrainingData.from_run(runs.load_config(prior))
    return runs.find(logs, "ranker", path, data=data, image_size=runs.image_size(prior))
