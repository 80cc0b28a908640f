"""Configuration of a resumed run: its saved settings, and those that the command line changes.

Example. A dVAE was trained by

    python src/train.py stage=dvae trainer.max_steps=1000

so its `config.yaml` holds, among others:

    overrides: [stage=dvae, trainer.max_steps=1000]
    trainer: {max_steps: 1000}
    model: {learning_rate: {then: {start: 0.005, steps: 1000}}}

Since then conf/ has changed: new runs start at a learning rate of 0.004. The user resumes by

    python src/train.py stage=dvae resume=true trainer.max_steps=3000

1. `before` is conf/ composed with the recorded overrides: max_steps 1000, start 0.004, steps 1000.
   Keys on this command line take their saved values.
2. `after` adds the overrides of this command line: max_steps 3000, start 0.004, steps 3000.
3. The saved configuration takes the keys in which `before` and `after` differ:

    overrides: [stage=dvae, trainer.max_steps=3000]
    trainer: {max_steps: 3000}
    model: {learning_rate: {then: {start: 0.005, steps: 3000}}}

The schedule grows with the training, because its length follows trainer.max_steps. The learning
rate stays as saved, because no argument changes it.

Some keys exist only with an option of a group, such as data.source.path with data=folder. Before
Hydra reads the command line, `with_recorded_options` therefore adds the options of the run.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict

from tilewright import runs
from tilewright.checks import format_value
from tilewright.cli import settings, text_values
from tilewright.configs import escape
from tilewright.distributed import launch
from tilewright.errors import UserError
from tilewright.program import CONF
from tilewright.runs import finetuning, fixed_keys

# Groups whose option may change: the trained model does not depend on it.
EXCHANGEABLE = {"trainer", "logger"}
# Options that only observe a training. They last until the next resume.
DIAGNOSTICS = {"debug=anomaly", "debug=profile"}
# Settings of one trainer that do not apply to another one.
HARDWARE = re.compile(r"trainer\.(accelerator|devices|num_nodes|strategy)\b")
# Keys that determine which run is resumed.
NAMING = {"resume", "stage", "experiment", "paths", "paths.logs"}


def with_recorded_options(arguments: list[str]) -> list[str]:
    """Returns the arguments of a training with the options of the run that `resume=` names.

    They stand beside `resume=`, because Hydra's parser accepts settings on one side of a flag only.
    A group that the arguments set keeps their option. Processes that the first one has started get
    no options, because they read everything from `config.yaml`.

    Raises:
        UserError: there is no such run, or it cannot be read.
    """
    typed = list(map(runs.override_key, arguments))
    if "resume" not in typed or launch.is_child(typed):
        return arguments
    naming = [text for text in arguments if runs.override_key(text) in NAMING]
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra.compose("train", text_values.to_hydra(naming, "train"))
    except HydraException:  # the command reports it, or knows an option from --config-dir
        return arguments
    if not config.resume or (config.resume is True and OmegaConf.is_missing(config, "stage")):
        return arguments
    saved = runs.load_config(find_run(config)[0])
    options = [
        text
        for text in _recorded(saved)
        if runs.override_key(text) in saved.choices.keys() - set(typed) and text not in DIAGNOSTICS
    ]
    place = typed.index("resume")
    return [*arguments[:place], *options, *arguments[place:]]


def find_run(config: DictConfig) -> tuple[Path, Path]:
    """Returns the run that `resume=` names, and the checkpoint to resume from.

    Raises:
        UserError: no such run or checkpoint exists.
    """
    stage = None if OmegaConf.is_missing(config, "stage") else config.stage
    path = None if config.resume is True else config.resume
    return runs.find_resumable(Path(config.paths.logs), stage, path)


def resumed_config(saved: DictConfig) -> DictConfig:
    """Returns a run's saved configuration with the changes that this command line makes.

    Raises:
        UserError: the command line changes an option or a key that must stay as trained.
    """
    _check_chosen_once(saved)
    config = saved.copy()
    if f"debug={saved.choices.get('debug')}" in DIAGNOSTICS:
        del config.choices["debug"]
    config.choices.update(_exchanged_options(saved))
    recorded = _recorded(saved)
    kept = [text for text in recorded if text not in DIAGNOSTICS]
    if config.choices.get("trainer") != saved.choices.get("trainer"):
        kept = [text for text in kept if not HARDWARE.match(runs.override_key(text))]
    by_key = {runs.override_key(text): text for text in [*kept, *settings.overrides()]}
    config.overrides = escape(list(by_key.values()))  # the last value of a key counts
    before = _compose(saved, recorded, typed=settings.typed_keys())
    after = _compose(saved, config.overrides)
    _check_fixed_keys(saved, before, after)
    _apply_difference(config, before, after)
    return config


def _recorded(saved: DictConfig) -> list[str]:
    """Returns the settings of the command line that trained a run."""
    return list(saved.get("overrides", [f"stage={saved.stage}"]))


def _check_chosen_once(saved: DictConfig) -> None:
    """Checks that the command line keeps the keys of `CHOSEN_ONCE`.

    Raises:
        UserError: an argument changes one of them.
    """
    recorded = saved.get("overrides", [])
    for override in settings.overrides():
        key, value = runs.split_override(override)
        if key not in fixed_keys.CHOSEN_ONCE or override in recorded:
            continue
        trained = format_value(OmegaConf.select(saved, key))
        if value != trained:
            raise UserError(_refusal(override, f"was trained with {key}={trained}"))


def _check_fixed_keys(saved: DictConfig, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Checks that the keys that `fixed_keys` lists stay as trained.

    Raises:
        UserError: an argument changes one of them, by its key or by a branch above it.
    """
    old, new = _leaves(before), _leaves(after)
    trained = _leaves(OmegaConf.to_container(saved, resolve=True))
    arguments = [runs.override_key(text) for text in settings.overrides()]
    changed = [key for key in old | new if old.get(key) != new.get(key)]
    for key in dict.fromkeys([*arguments, *changed]):
        requested, required = new.get(key), trained.get(key)
        if requested == required:
            continue
        change = f"{key}={format_value(requested)}"
        if fixed_keys.is_fixed_by_weights(key):
            raise UserError(
                _refusal(change, f"has weights that are made for {key}={format_value(required)}")
            )
        if fixed_keys.is_fixed_by_training(key):
            raise UserError(_refusal(change, f"was trained with {key}={format_value(required)}"))
    key = "data.batch_size"
    if new.get("data.overfit_batches") and new.get(key) != trained.get(key):
        reason = f"repeats the first batches of {trained.get(key)} rows (data.overfit_batches)"
        raise UserError(_refusal(f"{key}={new.get(key)}", reason))


def _refusal(change: str, reason: str) -> str:
    return f"{change} cannot change a resumed run, which {reason}: leave it out, or start a new run"


def _leaves(value: Any, key: str = "") -> dict[str, Any]:
    """Returns the leaves of nested dictionaries by their full keys."""
    if not isinstance(value, dict):
        return {key: value}
    leaves: dict[str, Any] = {}
    for name, item in value.items():
        leaves |= _leaves(item, f"{key}.{name}" if key else name)
    return leaves


def _exchanged_options(saved: DictConfig) -> dict[str, str]:
    """Returns the options that the command line chooses in the exchangeable groups."""
    groups, exchanged = settings.choices(), {}
    recorded = _recorded(saved)  # `init=` may have replaced an option by that of its weights
    for override in settings.overrides():
        key, value = runs.split_override(override)
        trained = saved.choices.get(key)
        observes = override in DIAGNOSTICS and f"debug={trained}" in DIAGNOSTICS | {"debug=None"}
        if key in EXCHANGEABLE or observes:
            exchanged[key] = value
        elif key == "debug" and trained is None:
            raise UserError(
                f"{override} cannot change a resumed run, because it changes the training: use "
                f"{' or '.join(sorted(DIAGNOSTICS))}, or start a new run"
            )
        elif key in groups and value != trained and override not in recorded:
            raise UserError(_refusal(override, f"has {key}={trained}"))
    return exchanged


def _compose(saved: DictConfig, overrides: list[str], typed: Sequence[str] = ()) -> dict[str, Any]:
    """Composes conf/ with overrides and with what training filled in or adopted.

    Args:
        typed: keys to set to their saved value, so that a typed value that differs from it counts
            as a change, even if it is the default in conf/.
    """
    config = hydra.compose("train", text_values.to_hydra(overrides, "train"))
    with open_dict(config):
        settings.make_encoder_absolute(config)
        if saved.get("init"):
            finetuning.adopt_network(config, saved, map(runs.override_key, overrides))
        for key in (*fixed_keys.FILLED_IN, *fixed_keys.CHOSEN_ONCE):
            if key in saved:
                config[key] = escape(saved[key])
        for key in typed:
            value = OmegaConf.select(saved, key)
            if value is not None and not isinstance(value, DictConfig):
                OmegaConf.update(config, key, escape(value))
    resolved: Any = OmegaConf.to_container(config, resolve=True)
    return resolved


def _apply_difference(config: DictConfig, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Applies to `config`, in place, the change that leads from `before` to `after`."""
    for key in before.keys() - after.keys():
        config.pop(key, None)
    for key, value in after.items():
        if key in before and before[key] == value:
            continue
        if isinstance(value, dict) and isinstance(before.get(key), dict) and key in config:
            _apply_difference(config[key], before[key], value)
        else:
            config[key] = escape(value)
