"""Settings of a benchmark from the command line, `key=value` as everywhere in this project."""

import sys
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


def read(
    defaults: dict, description: str | None, arguments: Sequence[str] | None = None
) -> tuple[DictConfig, list[str]]:
    """The benchmark's settings, and the arguments that are none of its own.

    Args:
        defaults: every setting with its default; a value may be a dictionary (`group.key=value`).
        description: printed for `--help`, with the defaults.
        arguments: the command line's by default.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    known = OmegaConf.create(defaults)
    if "--help" in arguments or "-h" in arguments:
        print(f"{description}\nSettings:\n{OmegaConf.to_yaml(known)}")
        sys.exit()
    own = [text for text in arguments if text.partition("=")[0].partition(".")[0] in defaults]
    OmegaConf.set_struct(known, True)  # a misspelled key of a group is a mistake, not a new key
    try:
        settings = OmegaConf.merge(known, OmegaConf.from_dotlist(own))
    except OmegaConfBaseException as error:
        sys.exit(
            f"error: {error.full_key}: {str(error).splitlines()[0]}; --help lists the settings"
        )
    assert isinstance(settings, DictConfig)
    return settings, [text for text in arguments if text not in own]


def read_own(defaults: dict, description: str | None) -> DictConfig:
    """The settings of a benchmark that takes no others than its own."""
    settings, others = read(defaults, description)
    if others:
        sys.exit(f"error: no setting {others[0]}; --help lists the settings")
    return settings
