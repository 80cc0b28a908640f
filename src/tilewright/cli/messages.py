"""User errors as one line on stderr, with exit status 1 and no traceback."""

import contextlib
import difflib
import errno
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from tilewright import program
from tilewright.cli import settings, text_values
from tilewright.errors import UserError, missing_module
from tilewright.training import trainer_settings

# errno values that mean the destination is not writable.
NOT_WRITABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR,
    errno.ENAMETOOLONG,
}  # fmt: skip

# Groups of train.py that have no keys with some options: the advice on a key of them.
EMPTY_GROUPS = {
    "logger": "has no effect with logger=none: leave one of them out",
    "lora": "needs adapters: set lora=default, too",
    "caption": "needs a text encoder: set caption=encoder, too",
    "tokenizer": "has no effect here: set caption.{} with caption=encoder, and leave it out for a "
    "dVAE",
}


@contextlib.contextmanager
def one_line_errors(has_data: bool = False) -> Iterator[None]:
    """Ends the program with one line if the block fails by a mistake that the user can fix.

    Any `debug=` setting on the command line keeps the traceback instead, unless the mistake is that
    setting. Other errors pass.

    Args:
        has_data: True if the command has the config group `data`.
    """
    try:
        yield
    except (UserError, HydraException, OmegaConfBaseException) as error:
        line = one_line(error, has_data)
        if _is_debugging() and not _is_about_debugging(line):
            raise
        hint = _repeated_key_hint() if isinstance(error, UserError) else ""
        sys.exit(f"error: {program.with_own_invocations(line)}{hint}")
    except ValueError as error:
        message = _null_option(error)
        if message is None or _is_debugging():
            raise
        sys.exit(f"error: {message}")
    except BrokenPipeError:
        program.discard_stdout()
        sys.exit(1)
    except OSError as error:
        if not (error.errno in NOT_WRITABLE or _failed_in_mkdir(error)) or _is_debugging():
            raise
        sys.exit(
            f"error: {error.filename or 'a file'} cannot be written ({error.strerror}): free space "
            "there, or choose another folder"
        )
    except KeyboardInterrupt:
        sys.exit(130)


def _failed_in_mkdir(error: OSError) -> bool:
    """Returns True if creating a folder failed. Below /proc, the error is FileNotFoundError."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_code.co_name == "mkdir"


def _repeated_key_hint() -> str:
    """Returns advice for an argument such as run=A,B, if no such path exists but A and B do.

    Only a list can be repeated, and any key of text in a sweep, which all of eval.py is.
    """
    if not HydraConfig.initialized():
        return ""
    lists = text_values.LISTS.get(str(HydraConfig.get().job.config_name), ())
    for word in sys.argv[1:]:
        key, _, text = word.partition("=")
        repeats = key in lists or (
            settings.is_sweep() and text_values.reserved_words(key) is not None
        )
        paths = text.strip("[]").split(",")
        is_list = len(paths) > 1 and all(path and Path(path).exists() for path in paths)
        if repeats and is_list and not Path(text).exists():
            return f" (for several, repeat the key: {' '.join(f'{key}={path}' for path in paths)})"
    return ""


def _is_debugging() -> bool:
    return any(word.startswith("debug=") for word in sys.argv)


def _is_about_debugging(line: str) -> bool:
    """Returns True if a message refuses the `debug=` setting, which then asks for nothing."""
    options = [word.removeprefix("debug=") for word in sys.argv if word.startswith("debug=")]
    return any(f"debug{sign}{option}" in line for option in options for sign in "=/")


def one_line(error: BaseException, has_data: bool = False) -> str:
    """Returns the message of a user error on one line.

    Hydra and OmegaConf wrap the error of a constructor. The constructor's message is the useful
    one, so it is unwrapped.
    """
    if isinstance(error, UserError):
        # A dataloader worker puts its traceback in front of the message.
        return _join(str(error).rpartition("UserError: ")[2])
    if has_data and _is_missing_data(error):
        return "data has no keys before a dataset is named: add data=NAME, or leave data.KEY out"
    for explain in (
        _unreadable_override,
        _absent_group,
        _misspelled_key,
        _constructor_error,
        _several_values,
    ):
        message = explain(error)
        if message is not None:
            return message
    hints = r"Config search path:.*|Set the environment variable.*"
    private_options = r"^\s+_\w+$"
    text = re.sub(hints, "", str(error), flags=re.S)
    return _join(re.sub(private_options, "", text, flags=re.M))


def _null_option(error: ValueError) -> str | None:
    """Explains GROUP=null, which Hydra refuses."""
    if not str(error).startswith("Config group override must be"):
        return None
    return (
        "null is not an option of a group: leave the group out, or name an option (none for "
        "logger, filter and ranker)"
    )


def _join(text: str) -> str:
    return " ".join(text.split())


def _unreadable_override(error: BaseException) -> str | None:
    """Explains an argument that does not follow Hydra's grammar."""
    if not isinstance(error, OverrideParseException):
        return None
    return (
        f"{error.override} is not a setting: write KEY=VALUE, with a value such as 8, 0.5, true, "
        "null, a word, [a,b] or {a: 1}"
    )


def _absent_group(error: BaseException) -> str | None:
    """Explains GROUP=OPTION for a command or a stage that does not have the group."""
    match = re.match(r"Could not override '(\w+)'\. No match", str(error))
    if match is None:
        return None
    if match[1] == "sampling":  # a mapping in train and export
        return (
            "sampling= does not take an option here: set its keys, for the paper's "
            "sampling.temperature=1 sampling.guidance=1"
        )
    stages = [
        file.stem
        for file in sorted((program.CONF / "stage").glob("*.yaml"))
        if re.search(rf"^  - /{match[1]}:", file.read_text(), re.M)
    ]
    if not stages:
        return None
    return f"{match[1]}= is for {' or '.join(f'stage={name}' for name in stages)}: leave it out"


def _is_missing_data(error: BaseException) -> bool:
    """Returns True for an override of a key of `data` without the option of a dataset."""
    return getattr(error.__cause__, "full_key", None) == "data"


def _misspelled_key(error: BaseException) -> str | None:
    """Explains an override of a key that does not exist.

    The advice is a rule for `trainer`, or the most similar key.
    """
    cause = error.__cause__
    if not isinstance(cause, ConfigAttributeError | ConfigKeyError):
        return None
    parent, _, name = str(cause.full_key).rpartition(".")
    refusal = trainer_settings.refusal(name) if parent == "trainer" else None
    if refusal is not None:
        return refusal
    if parent == "hydra.sweeper":
        return f"{cause.full_key}= is for a search with Optuna: add sweep=NAME, or leave it out"
    siblings = [str(key) for key in cause.parent_node or ()]
    if parent in EMPTY_GROUPS and not siblings:
        return f"{cause.full_key}= {EMPTY_GROUPS[parent].format(name)}"
    similar = difflib.get_close_matches(str(cause.key), siblings, n=1)
    inner = [
        f"{key}.{cause.key}" for key in siblings if _has_key(cause.parent_node, key, cause.key)
    ]
    similar = similar or inner[:1]
    if not similar:
        return (
            f"{cause.full_key} is not a key: --cfg job prints all, and +{cause.full_key}=… adds one"
        )
    branch = str(cause.full_key).removesuffix(str(cause.key))
    return f"{cause.full_key} is not a key: did you mean {branch}{similar[0]}?"


def _has_key(node: Any, group: str, key: Any) -> bool:
    """Returns True if a group in a node has the key."""
    children = node._get_node(group)  # without interpolations, and of a missing value
    return isinstance(children, DictConfig) and key in children.keys()  # noqa: SIM118


def _constructor_error(error: BaseException) -> str | None:
    """Explains a setting whose class cannot be imported or refuses its arguments."""
    key = re.search(r"full_key: (\S+)", str(error))
    package = _missing_package(error)
    if key and package:
        return missing_module(key[1], package)
    if key and error.__cause__ is not None:
        reason = one_line(error.__cause__)
        named = re.match(r"(\w+(\.\w+)*)=", reason)
        if named is None:
            return f"{key[1]}: {reason}"
        is_full = "." in named[1] or any(word.startswith(named[0]) for word in sys.argv)
        return reason if is_full else f"{key[1]}.{reason}"
    if isinstance(error.__cause__, UserError):
        return one_line(error.__cause__)
    return None


def _missing_package(error: BaseException | None) -> str | None:
    """Returns the package that failed to import, if such an error is among the causes."""
    while error is not None and not isinstance(error, ModuleNotFoundError):
        error = error.__cause__
    name = error.name if error is not None else None
    return None if name is None or name.startswith("tilewright") else name


def _several_values(error: BaseException) -> str | None:
    """Explains several values of a key that takes one: KEY=A,B, or a repeated key of text."""
    pattern = r"Ambiguous value for argument '\+*([^=]+)=(.*?)'\n1\. "
    match = re.match(pattern, str(error), re.DOTALL)
    if match is None:
        return None
    key = match[1]
    if any(word.startswith(f"{key}.") for word in sys.argv):
        return (
            f"{key}.KEY=value cannot be combined with several options of {key}: leave the key out, "
            "or choose one option"
        )
    if text_values.reserved_words(key) is None:
        return f"{key}={match[2]} is several values: name one, or add -m to run once for each"
    return f"{key}= is set more than once: name one value, or add -m to run once for each"
