"""Values of the command line that are text, and are therefore taken exactly as typed.

Only `~` at the beginning of a path is replaced, by the home folder: a shell leaves it after `key=`.

Hydra reads values by a grammar, in which commas, parentheses, quotes and much else have a meaning.
`to_hydra` quotes text before Hydra reads it. `from_hydra` undoes this for records and messages.

A list of texts (`LISTS`), or a sweep over them, repeats the key: `prompt=A prompt=B`. No other key
takes a list of texts.
"""

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import OmegaConf

from tilewright.configs import escape, unescape
from tilewright.errors import UserError
from tilewright.runs import path_keys
from tilewright.text_files import is_unicode

NULL, SWITCH = ("null",), ("true", "false")

# Patterns of keys, with the words that are not text there.
TEXT_KEYS: dict[str, tuple[str, ...]] = {
    # captions
    "prompt": (),
    "prompts": NULL,
    "caption_column": NULL,
    # runs, models and names
    "run": NULL,
    "compare": NULL,
    "dvae": NULL,
    "init": SWITCH,
    "base": NULL,
    "resume": SWITCH,
    "with_ranker": SWITCH,
    "ranker.run": NULL,
    "ranker.path": (),
    "metric.clip": NULL,
    "run_name": (),
    "name": NULL,
    "license": (),
    "hydra.sweeper.study_name": NULL,
    "hydra.sweeper.storage": NULL,
    # files and folders
    "paths.*": (),
    "out": NULL,
    "image_prompt": NULL,
    "family.checkpoint": (),
    "family.encoder": (),
    "family.decoder": (),
    "family.folder": (),
    "family.text_encoder": (),
    "family.dvae.checkpoint": (),
    "family.path": (),
    "*inception_weights": NULL,
    "loss.perceptual.vgg_weights": NULL,
    "trainer.default_root_dir": (),
    "trainer.profiler.dirpath": (),
    "trainer.profiler.filename": (),
    "callbacks.*.dirpath": (),
    "callbacks.*.filename": (),
    "callbacks.*.run": (),
    "callbacks.samples.before_after": NULL,
    "logger.*.save_dir": (),
    "logger.*.name": (),
    "logger.*.version": (),
    # data
    "data.cache": (),
    "data.image_tokenizer.run": NULL,
    "tokenizer.path": NULL,
    "caption.path": NULL,
    "data.source.path": (),
    "data.source.root": (),
    "data.source.name": (),
    "data.source.config": NULL,
    "data.source.split": NULL,
    "data.source.*_column": NULL,
    "data.source.caption_field": NULL,
    "data.source.encoding": NULL,
    "metric.split": (),
}
# Text keys with a meaning for empty text, such as a caption.
MAY_BE_EMPTY = ("prompt", "logger.*.name", "logger.*.version")
# Folders that commands write to.
NEW_FOLDERS = ("paths.*", "data.cache", "out", "callbacks.*.dirpath", "logger.*.save_dir")
# Keys whose value is a list: repeating them adds to it. Repeating any other key is a sweep.
LISTS = {"generate": ("prompt",), "export": ("prompt",), "runs": ("compare",)}

# OmegaConf reads `???` alone as a missing value. With an empty interpolation beside it, it is text.
MISSING = "???"
OmegaConf.register_new_resolver("nothing", lambda: "", replace=True)
# Text that Hydra's grammar reads as itself.
PLAIN = re.compile(r"(?!(?:null|true|false|[+-]?(?:inf|nan))$)[A-Za-z_/][\w/.-]*", re.ASCII | re.I)
ARGUMENT = re.compile(r"(\+{0,2})([^\s=~+-][^\s=]*)=(.*)", re.DOTALL)


def reserved_words(key: str) -> tuple[str, ...] | None:
    """Returns the words that are not text as values of a text key, or None for any other key."""
    return next((words for pattern, words in TEXT_KEYS.items() if fnmatchcase(key, pattern)), None)


def needs_text(key: str) -> bool:
    """Returns True if the value of a key is text that cannot be empty."""
    return reserved_words(key) is not None and not _matches(key, MAY_BE_EMPTY)


def is_new_folder(key: str) -> bool:
    """Returns True if the value of a key is a folder that a command writes to."""
    return _matches(key, NEW_FOLDERS)


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def to_hydra(arguments: Sequence[str], command: str) -> list[str]:
    """Returns a command line in Hydra's grammar: text is quoted, and repeated keys are joined.

    Raises:
        UserError: an argument is not valid Unicode, or begins with ~ and names no user.
    """
    values: dict[str, list[str]] = {}
    joined: list[tuple[str, str]] = []
    for argument in arguments:
        if not is_unicode(argument):
            raise UserError(f"{argument!r} is not valid UTF-8: type it in a terminal with UTF-8")
        match = ARGUMENT.fullmatch(argument)
        if match is None or reserved_words(match[2]) is None:
            joined.append((argument, ""))
            continue
        prefix, key, text = match.groups()
        if text.startswith("~") and path_keys.is_path(key):
            text = _expand_home(key, text)
        if key not in values:
            joined.append((f"{prefix}{key}=", key))
        values.setdefault(key, []).append(_quote(key, text))
    quoted = [start + _join(values[key], key, command) if key else start for start, key in joined]
    # Hydra's parser accepts settings on one side of a flag only.
    return sorted(quoted, key=lambda argument: argument in {"-m", "--multirun"})


def _expand_home(key: str, path: str) -> str:
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise UserError(
            f"{key}={path} begins with ~ and names no user of this machine: write ./{path} if it "
            "is the name of a file"
        ) from error


def _join(values: list[str], key: str, command: str) -> str:
    text = ",".join(values)
    return f"[{text}]" if key in LISTS.get(command, ()) else text


def _quote(key: str, text: str) -> str:
    if text.lower() in (reserved_words(key) or ()) or PLAIN.fullmatch(text):
        return text
    if key == "data.source.split" and text.startswith("{"):
        return text  # a mapping of split names
    if text == MISSING:
        return f"'{text}${{nothing:}}'"
    return QuotedString(escape(text), Quote.single).with_quotes()


def from_hydra(argument: str) -> str:
    """Returns an argument in Hydra's grammar as a user would type it."""
    match = ARGUMENT.fullmatch(argument)
    if match is None or reserved_words(match[2]) is None:
        return argument
    value = OverridesParser.create().parse_override(argument).value()
    return f"{match[1]}{match[2]}={unescape(value)}" if isinstance(value, str) else argument
