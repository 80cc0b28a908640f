"""What the entry points have in common: Hydra, and mistakes told in one line."""

import contextlib
import errno
import functools
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from tilewright import program, runs
from tilewright.errors import UserError

PACKAGE = Path(__file__).parents[1]
# A wheel holds conf/ inside the package. A checkout has it at the top.
CONF = next(c for c in (PACKAGE / "conf", PACKAGE.parents[1] / "conf") if c.is_dir())

# Warnings of libraries about what is as it should be.
NOISE = (
    ".*isinstance.treespec, LeafSpec.*",
    ".*Experiment logs directory .* exists and is not empty.*",  # a run's logs lie in its folder
    ".*does not have many workers.*",  # small pictures are read faster than a worker passes them on
    ".*number of training batches .* is smaller than the logging interval.*",
    ".*call to a `functools.lru_cache`-wrapped function.*",  # a mask is the same at every call
    ".*recommended to use `self.log.*sync_dist=True.*",  # figures that all processes share already
    ".*invalid value encountered in scalar divide.*",  # a Fréchet distance of very few pictures
)

# Groups that a resumed run may choose anew: what is trained does not depend on them.
EXCHANGEABLE = {"trainer", "logger"}
# Settings of a trainer that are of no use to another one.
OF_ONE_TRAINER = re.compile(r"trainer\.(accelerator|devices|num_nodes|strategy)\b")

# What says which run it is, or that it is one of several: no settings of it.
IDENTITY = {"resume", "run_name", "run", "sweep"}

# What is wrong with a place that nothing can be written to.
NO_PLACE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR,
}  # fmt: skip

# ${share:0.6,${trainer.max_steps}} in a config: so many of the run's steps.
OmegaConf.register_new_resolver("share", lambda share, total: round(share * total), replace=True)


def command(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Makes a function of a configuration a command: `hydra.main` with errors in one line.

    A mistake of the user ends the program with one line on stderr and status 1. With any `debug=`
    setting the traceback is shown.
    """

    def decorate(main: Callable[[DictConfig], Any]) -> Callable[[], None]:
        @functools.wraps(main)
        def job(config: DictConfig) -> Any:
            with mistakes_in_one_line():  # in here too: Hydra announces what leaves a job
                return main(config)

        def run() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would have printed
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns in forked workers
            for message in NOISE:
                warnings.filterwarnings("ignore", message)
            if not sys.stderr.isatty():  # bars are for people, not for log files
                os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
            start = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
            with mistakes_in_one_line(), own_invocations_in_help():
                start(job)()

        return run

    return decorate


@contextlib.contextmanager
def own_invocations_in_help() -> Iterator[None]:
    """Makes the help text, which Hydra prints, name the commands as the user starts them."""
    if not program.is_installed_command() or not {"--help", "-h"} & set(sys.argv):
        yield
        return
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            yield
    finally:  # Hydra exits after its help
        print(program.with_own_invocations(text.getvalue()), end="")


@contextlib.contextmanager
def mistakes_in_one_line() -> Iterator[None]:
    """Ends the program with one line where the user made a mistake."""
    try:
        yield
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if any(word.startswith("debug=") for word in sys.argv):
            raise
        sys.exit(f"error: {program.with_own_invocations(one_line(error))}")
    except BrokenPipeError:
        program.discard_stdout()
        sys.exit(1)
    except OSError as error:
        if error.errno not in NO_PLACE or any(word.startswith("debug=") for word in sys.argv):
            raise
        file = error.filename or "a file"
        sys.exit(
            f"error: {file} cannot be written ({error.strerror}): make room there, or set "
            "paths.logs and paths.data; a training that has begun goes on with resume="
        )
    except KeyboardInterrupt:
        sys.exit(130)


def one_line(error: BaseException) -> str:
    """The message of a user's mistake, on one line.

    Hydra wraps what a constructor raises; the constructor's own words are what helps.
    """
    if isinstance(error, UserError):
        # One that a DataLoader's worker raised comes with the worker's traceback before it.
        return " ".join(str(error).rpartition("UserError: ")[2].split())
    if isinstance(error, OverrideParseException) and "=" in error.override:
        key, _, value = error.override.partition("=")
        return (
            f"{error.override} cannot be read: characters such as {{ }} ( ) : need Hydra's quotes "
            f"within those of the shell, \"{key}='{value}'\""
        )
    place = re.search(r"full_key: (\S+)", str(error))
    absent = _absent_package(error)
    if place and absent:
        return f"{place[1]} needs a package that is not installed: pip install {absent}"
    if error.__cause__ is not None and place:
        return f"{place[1]}: {one_line(error.__cause__)}"
    if isinstance(error.__cause__, UserError):
        return one_line(error.__cause__)
    swept = re.match(r"Ambiguous value for argument '(\w+)=", str(error))
    if swept and any(word.startswith(f"{swept[1]}.") for word in sys.argv):
        return (
            f"several options of {swept[1]} at once take no {swept[1]}.KEY=value, which is for one "
            f"of them: leave it out, or choose one"
        )
    message = re.sub(
        r"Config search path:.*|Set the environment variable.*", "", str(error), flags=re.S
    )
    return " ".join(re.sub(r"\n\t", " ", message).split())


def _absent_package(error: BaseException | None) -> str | None:
    """The package whose import failed, somewhere among an error's causes."""
    while error is not None and not isinstance(error, ModuleNotFoundError):
        error = error.__cause__
    name = error.name if error is not None else None
    return None if name is None or name.startswith("tilewright") else name


def choices() -> dict[str, str]:
    """The option chosen in each config group, for the record: {"data": "shapes", ...}."""
    chosen = HydraConfig.get().runtime.choices
    return {
        group: option
        for group, option in chosen.items()
        if option and group not in IDENTITY and not group.startswith(("hydra/", "_"))
    }


def options(group: str) -> list[str]:
    """All options of a config group, also those of --config-dir."""
    found = GlobalHydra.instance().config_loader().get_group_options(group)
    return sorted(name for name in found if not name.startswith("_"))


def job_name(name: str) -> str:
    """The run's name; each job of a sweep has its number behind it."""
    config = HydraConfig.get()
    sweeping = config.mode is not None and config.mode.name == "MULTIRUN"
    return f"{name}_{config.job.num}" if sweeping else name


def find_ranker(config: DictConfig, prior: Path) -> None:
    """Fills in which run of stage=ranker is meant, unless one is named.

    It is the one that came with the prior, else the newest on the data that the prior is of.

    Raises:
        UserError: there is none, or `best_of` is asked for with no ranker at all.
    """
    if config.ranker._target_ is None:
        raise UserError("ranker=none cannot choose: name a ranker, or leave best_of out")
    if "run" in config.ranker:
        logs, wanted = Path(config.paths.logs), config.ranker.run
        if wanted is None and (prior / runs.RANKER).is_dir():
            wanted = str(prior / runs.RANKER)
        data = runs.load_config(prior).choices.data
        config.ranker.run = str(runs.find(logs, "ranker", wanted, data=data))


def check(config: DictConfig) -> None:
    """Looks for what would go wrong later: keys without a value, references that lead nowhere.

    Raises:
        UserError: a key that the user must set has no value.
    """
    missing = OmegaConf.missing_keys(config)
    if missing:
        key = min(missing)
        raise UserError(f"{key} has no value: set it on the command line, {key}=…")
    OmegaConf.to_container(config, resolve=True)


def overrides() -> list[str]:
    """The settings of this command line, `key=value`, less those that say which run it is."""
    given = HydraConfig.get().overrides.task
    return [text for text in given if runs.key_of(text) not in IDENTITY]


def resumed(saved: DictConfig) -> DictConfig:
    """A run's own configuration, with what the settings of this command line change in it.

    What follows from a setting follows: with trainer.max_steps the schedules grow longer as well.

    Raises:
        UserError: the command line chooses another option of a group than the run was trained with.
    """
    config = saved.copy()
    chosen = choices()
    for override in overrides():
        key, _, value = override.lstrip("+~").partition("=")
        if key in chosen and key not in EXCHANGEABLE and value != saved.choices.get(key):
            raise UserError(
                f"a resumed run keeps its {key}={saved.choices.get(key)}: leave {override} out, or "
                "start a new run without resume"
            )
        if key in EXCHANGEABLE:
            config.choices[key] = value
    recorded = list(saved.get("overrides", [f"stage={saved.stage}"]))
    kept = recorded
    if config.choices.get("trainer") != saved.choices.get("trainer"):
        kept = [text for text in recorded if not OF_ONE_TRAINER.match(runs.key_of(text))]
    settings = {runs.key_of(text): text for text in [*kept, *overrides()]}  # the later one counts
    # The difference of two compositions, so that all else stays as it was saved.
    config.overrides = list(settings.values())
    _carry_over(config, _composed(saved, recorded), _composed(saved, config.overrides))
    return config


def _composed(saved: DictConfig, overrides: list[str]) -> dict:
    """The configuration of these settings, with what the command filled in for the saved run."""
    config = hydra.compose("train", overrides)
    with open_dict(config):
        for key in ("run", "run_name", "dvae", "image_tokens"):
            if key in saved:
                config[key] = saved[key]
    resolved = OmegaConf.to_container(config, resolve=True)
    assert isinstance(resolved, dict)
    return resolved


def _carry_over(config: DictConfig, before: dict, after: dict) -> None:
    """Makes of a configuration what makes `after` of `before`."""
    for key in before.keys() - after.keys():
        config.pop(key, None)
    for key, value in after.items():
        if key in before and before[key] == value:
            continue
        if isinstance(value, dict) and isinstance(before.get(key), dict) and key in config:
            _carry_over(config[key], before[key], value)
        else:
            config[key] = value
