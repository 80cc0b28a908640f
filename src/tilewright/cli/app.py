"""Hydra application around each command's `main`."""

import contextlib
import functools
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import hydra
import yaml
from omegaconf import DictConfig, OmegaConf

from tilewright import program
from tilewright.cli import settings, text_values
from tilewright.cli.messages import one_line_errors
from tilewright.errors import UserError
from tilewright.program import CONF

# Library warnings about choices that are intended here.
IGNORED_WARNINGS = (
    ".*isinstance.treespec, LeafSpec.*",
    ".*Experiment logs directory .* exists and is not empty.*",  # a run's logs are in its folder
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*does not have many workers.*",  # decoding small images is faster than a worker's transfer
    ".*number of training batches .* is smaller than the logging interval.*",
    ".*call to a `functools.lru_cache`-wrapped function.*",  # the mask is a constant
    ".*recommended to use `self.log.*sync_dist=True.*",  # metrics that are already reduced
    ".*invalid value encountered in scalar divide.*",  # Fréchet distance of very few images
)

# ${share:0.6,${trainer.max_steps}} in a config is 60% of the run's updates.
OmegaConf.register_new_resolver("share", lambda share, total: round(share * total), replace=True)


def command(
    config_name: str, complete: Callable[[list[str]], list[str]] = list
) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Returns a decorator that turns a function of a configuration into a command.

    The command is `hydra.main` with errors on one line: a user error ends the program with status
    1. Any `debug=` setting shows the traceback instead.

    Args:
        config_name: name of the command and of its file in conf/.
        complete: adds arguments to those of the command line before Hydra reads them.
    """

    def decorate(main: Callable[[DictConfig], Any]) -> Callable[[], None]:
        typed: list[str] = []

        @functools.wraps(main)
        def job(config: DictConfig) -> Any:
            sys.argv[1:] = typed  # for records, and for the processes that Lightning starts
            with one_line_errors():  # inside too, because Hydra reports exceptions that leave a job
                settings.check_values(config, config_name)
                return main(config)

        def run() -> None:
            _configure_libraries()
            start = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
            typed[:] = sys.argv[1:]
            has_data = "data" in _groups(config_name)
            with one_line_errors(has_data), _adapted_help(config_name):
                _check_options(typed)
                sys.argv[1:] = text_values.to_hydra(complete(typed), config_name)
                start(job)()

        return run

    return decorate


def ignore_warnings() -> None:
    """Ignores library warnings about choices that are intended here."""
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message)


def _check_options(arguments: list[str]) -> None:
    """Checks that each group on the command line has one option. Hydra would accept a list.

    Raises:
        UserError: a group has a list.
    """
    for argument in arguments:
        group, _, option = argument.partition("=")
        if option.startswith("[") and (CONF / group).is_dir():
            raise UserError(f"{argument} is a list: name one option of {group}")


def _configure_libraries() -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises errors instead of printing them
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # avoids warnings in forked workers
    ignore_warnings()
    if not sys.stderr.isatty():  # no progress bars in log files
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


@contextlib.contextmanager
def _adapted_help(config_name: str) -> Iterator[None]:
    """Adapts the help text that Hydra prints.

    Commands are named as the user starts them. Private groups and options such as `_base` are left
    out, and groups of other commands.
    """
    if not {"--help", "-h"} & set(sys.argv):
        yield
        return
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            yield
    finally:  # Hydra exits after its help
        groups = _groups(config_name)
        others = [path.name for path in CONF.iterdir() if path.is_dir() and path.name not in groups]
        hidden = rf"(?<= )_\w+, |^(_\w+|{'|'.join(others)}): .*\n"
        public = re.sub(hidden, "", text.getvalue(), flags=re.M)
        print(program.with_own_invocations(public), end="")


def _groups(config_name: str) -> set[str]:
    """Returns the groups that a command's defaults list names, or those of its options name."""
    groups: set[str] = set()
    files = [CONF / f"{config_name}.yaml"]
    for file in files:  # the loop adds the files of the groups
        content = yaml.safe_load(file.read_text()) or {}
        for entry in content.get("defaults", []):
            if isinstance(entry, dict):
                group = next(iter(entry)).split()[-1].partition("@")[0].removeprefix("/")
                if group not in groups:
                    groups.add(group)
                    files += (CONF / group).glob("*.yaml")
    return groups
