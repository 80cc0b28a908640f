"""Command-line settings of a benchmark, in the form `key=value`."""

import sys
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


def parse_known(
    defaults: dict, description: str | None, arguments: Sequence[str] | None = None
) -> tuple[DictConfig, list[str]]:
    """Returns the settings of a benchmark, and the arguments that are not in `defaults`.

    Args:
        defaults: default of every setting; a value may be a dictionary (`group.key=value`).
        description: printed by `--help`, with the defaults.
        arguments: those of the command line by default.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    known = OmegaConf.create(defaults)
    if "--help" in arguments or "-h" in arguments:
        print(f"{description}\nSettings:\n{OmegaConf.to_yaml(known)}")
        sys.exit()
    own = [text for text in arguments if text.partition("=")[0].partition(".")[0] in defaults]
    OmegaConf.set_struct(known, True)  # a misspelled key of a group is an error, not a new key
    try:
        settings = OmegaConf.merge(known, OmegaConf.from_dotlist(own))
    except OmegaConfBaseException as error:
        sys.exit(
            f"error: {error.full_key}: {str(error).splitlines()[0]}; --help lists the settings"
        )
    assert isinstance(settings, DictConfig)
    return settings, [text for text in arguments if text not in own]


def parse(defaults: dict, description: str | None) -> DictConfig:
    """Returns the settings of a benchmark, and exits on an argument that is not in `defaults`."""
    settings, unknown = parse_known(defaults, description)
    if unknown:
        sys.exit(f"error: {unknown[0]} is not a setting; --help lists the settings")
    return settings
