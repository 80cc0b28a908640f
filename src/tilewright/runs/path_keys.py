"""Configuration keys whose value is a file or a folder."""

import re
from fnmatch import fnmatchcase
from pathlib import Path

# Patterns of keys. On the command line, `~` at the beginning of their values is the home folder.
PATHS = (
    *("prompts", "run", "compare", "dvae", "init", "base", "resume", "ranker.run", "ranker.path"),
    *("paths.*", "out", "image_prompt", "family.*", "*inception_weights", "metric.clip"),
    *("loss.perceptual.vgg_weights", "trainer.default_root_dir", "trainer.profiler.dirpath"),
    *("callbacks.*.dirpath", "callbacks.*.run", "callbacks.samples.before_after"),
    *("logger.*.save_dir", "data.cache", "data.image_tokenizer.run", "tokenizer.path"),
    *("caption.path", "data.source.path", "data.source.root", "data.source.name"),
)
# Those that may be a name on the Hugging Face Hub instead.
OR_HUB_NAMES = ("ranker.path", "metric.clip", "tokenizer.path", "caption.path", "data.source.name")
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")  # name or someone/name


def is_path(key: str) -> bool:
    """Returns True if the value of a key is a file or a folder."""
    return any(fnmatchcase(key, pattern) for pattern in PATHS)


def is_hub_name(key: str, value: str) -> bool:
    """Returns True if the value of a key is a name on the Hub, and not a path that exists."""
    may_be = key in OR_HUB_NAMES and HUB_NAME.fullmatch(value) is not None
    return may_be and not Path(value).exists()
