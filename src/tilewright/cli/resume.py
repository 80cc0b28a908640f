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
2. `after` adds the overrides of this command line: max_steps 3000, start 0.004, steps 3000.
3. The saved configuration takes the keys in which `before` and `after` differ:

    overrides: [stage=dvae, trainer.max_steps=3000]
    trainer: {max_steps: 3000}
    model: {learning_rate: {then: {start: 0.005, steps: 3000}}}

The schedule grows with the training, because its length follows trainer.max_steps. The learning
rate stays as saved, because no argument changes it.
"""

import re
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf, open_dict

from tilewright import runs
from tilewright.cli import settings
from tilewright.errors import UserError

# Groups that a resumed run may choose again, since what it trains does not depend on them.
EXCHANGEABLE = {"trainer", "logger"}
# Settings that belong to one trainer and make no sense for another one.
HARDWARE = re.compile(r"trainer\.(accelerator|devices|num_nodes|strategy)\b")


def resumed_config(saved: DictConfig) -> DictConfig:
    """Returns a run's saved configuration with the changes that this command line makes.

    Raises:
        UserError: the command line chooses an option that the run was not trained with.
    """
    config = saved.copy()
    config.choices.update(_exchanged_options(saved))
    recorded = list(saved.get("overrides", [f"stage={saved.stage}"]))
    kept = recorded
    if config.choices.get("trainer") != saved.choices.get("trainer"):
        kept = [text for text in recorded if not HARDWARE.match(runs.override_key(text))]
    by_key = {runs.override_key(text): text for text in [*kept, *settings.overrides()]}
    config.overrides = list(by_key.values())  # the last value of a key counts
    _apply_difference(config, _compose(saved, recorded), _compose(saved, config.overrides))
    return config


def _exchanged_options(saved: DictConfig) -> dict[str, str]:
    """Returns the options that the command line chooses in the exchangeable groups."""
    groups, exchanged = settings.choices(), {}
    for override in settings.overrides():
        key, _, value = override.lstrip("+~").partition("=")
        if key in EXCHANGEABLE:
            exchanged[key] = value
        elif key in groups and value != saved.choices.get(key):
            raise UserError(
                f"{override} cannot change a resumed run, which has {key}={saved.choices.get(key)}:"
                f" leave {override} out, or start a new run without resume="
            )
    return exchanged


def _compose(saved: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """Composes conf/ with overrides and with the values that training filled in for the run."""
    config = hydra.compose("train", overrides)
    with open_dict(config):
        for key in ("run", "run_name", "dvae", "image_tokens"):
            if key in saved:
                config[key] = saved[key]
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
            config[key] = value
