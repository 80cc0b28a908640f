"""Captioned images in tar shards, in the format of webdataset and img2dataset."""

import gzip
import json
import logging
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    List,
    Value,
)
from datasets.download import StreamingDownloadManager

from tilewright.data.filters import usable_captions
from tilewright.data.fingerprints import file_state
from tilewright.data.images import IMAGE_SUFFIXES
from tilewright.data.skipping import SkipRow
from tilewright.data.sources.columns import select_image_and_caption
from tilewright.data.sources.listing import list_files
from tilewright.data.sources.splits import hold_out_validation, resolve_splits, split_from_path
from tilewright.errors import UserError, first_line

log = logging.getLogger(__name__)

COMMON_KEYS = ("jpg", "jpeg", "png", "webp")
IMAGE_KEYS = (*COMMON_KEYS, *sorted({suffix[1:] for suffix in IMAGE_SUFFIXES} - {*COMMON_KEYS}))
CAPTION_KEYS = ("txt", "json")
FEATURES = Features({"image": Image(decode=False), "caption": List(Value("string"))})
BROKEN_SHARD = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
BRACES = re.compile(r"\{([^{}]*)\}")
MEMBERS_TO_CHECK = 100


@dataclass(frozen=True)
class WebDatasetSource:
    """Tar files whose members `NAME.jpg` and `NAME.txt` (or `.json`) are a pair.

    The file name determines its split ("val-0001.tar"), as for parquet files. All other files are
    for training. Members that do not belong to a pair are ignored.

    The loader of `datasets` for this format takes the columns from the first five pairs. It stops
    at the first pair that differs, such as a PNG among JPEGs, so it is not used here.

    Args:
        path: a file, a folder (its *.tar at any depth), a pattern with `*` or `{0000..0099}`, or a
            list of these. In an address (https://…, hf://…, s3://…) only braces are expanded.
        image_keys, caption_keys: endings of the members, in order of preference. Without
            image_keys, these are the endings of all image formats that can be read.
        caption_field: field of a `.json` member that holds the caption.
        streaming: read during training. False first copies all pairs to the cache of `datasets`.
        validation_fraction: share of the training images to hold out if there is no file for
            validation.
        seed: seed of that choice.
    """

    path: str | Sequence[str]
    image_keys: Sequence[str] | None = None
    caption_keys: Sequence[str] = CAPTION_KEYS
    caption_field: str = "caption"
    streaming: bool = True
    validation_fraction: float = 0.05
    seed: int = 0

    def load(self) -> DatasetDict | IterableDatasetDict:
        """Loads the splits. See `Source.load`."""
        description = f"webdataset at {self.path!r}"
        shards: dict[str, list[str]] = {}
        for file in self.files():
            shards.setdefault(split_from_path(file), []).append(file)
        self._check_members(next(iter(shards.values()))[0])
        splits = {split: self._dataset(files, description) for split, files in shards.items()}
        hold_out = partial(
            hold_out_validation,
            fraction=self.validation_fraction,
            seed=self.seed,
            description=description,
        )
        resolved = resolve_splits(
            splits, hold_out, description, "put 'train' in the name of a file"
        )
        return IterableDatasetDict(resolved) if self.streaming else DatasetDict(resolved)

    def files(self) -> list[str]:
        """Returns the paths and addresses of the shards, in order.

        Raises:
            UserError: no file matches a pattern.
        """
        patterns = [self.path] if isinstance(self.path, str) else list(self.path)
        files: list[str] = []
        for pattern in (expanded for item in patterns for expanded in expand_braces(item)):
            if "://" in pattern:
                files.append(pattern)
                continue
            path = Path(pattern).expanduser()
            if path.is_dir():
                matches = [str(file) for file in list_files(path).select({".tar"})]
            else:
                matches = sorted(glob(str(path), recursive=True))  # noqa: PTH207
            if not matches:
                raise UserError(
                    f"{pattern!r} matches no tar file: give a file, a folder or a pattern"
                )
            files += matches
        return files

    def _check_members(self, shard: str) -> None:
        """Reads the first members of a shard, to report wrong keys before the training starts."""
        keys = {"image": self.image_keys or IMAGE_KEYS, "caption": self.caption_keys}
        endings: set[str] = set()
        try:
            for name, _ in islice(_members(shard), MEMBERS_TO_CHECK):
                endings.add(_split_name(name)[1])
        except Exception as error:  # classes of tarfile, fsspec and each protocol
            if not endings:
                raise UserError(
                    f"{shard} cannot be read as a tar file ({first_line(error)}): replace or "
                    "remove it"
                ) from error
        for role, expected in keys.items():
            if not endings & set(expected):
                names = expected if len(expected) <= 5 else [*expected[:4], "…"]
                raise UserError(
                    f"{shard} has no member that ends in {' or '.join(names)}, only "
                    f"{', '.join(sorted(endings)) or 'none'}: set data.source.{role}_keys"
                )

    def _dataset(self, files: list[str], description: str) -> Dataset | IterableDataset:
        # Tuples, because `datasets` treats each list as a list of shards.
        arguments: dict[str, Any] = {
            "files": files,
            "image_keys": tuple(self.image_keys or IMAGE_KEYS),
            "caption_keys": tuple(self.caption_keys),
            "caption_field": self.caption_field,
        }
        if self.streaming:
            return IterableDataset.from_generator(read_pairs, gen_kwargs=arguments)
        states = tuple(map(file_state, files))  # a changed file is read again
        arguments = {**arguments, "states": states}
        rows = Dataset.from_generator(table_rows, features=FEATURES, gen_kwargs=arguments)
        return select_image_and_caption(rows, "image", "caption", description)


def read_pairs(
    files: list[str], image_keys: Sequence[str], caption_keys: Sequence[str], caption_field: str
) -> Iterator[dict[str, Any]]:
    """Yields the pairs in shards. A caption is returned as stored and may not be text.

    A broken shard ends early, with a warning.

    Raises:
        UserError: a shard cannot be opened.
    """
    for file in files:
        count = 0
        try:
            for parts in _samples(file, {*image_keys, *caption_keys}):
                count += 1
                image = next((parts[key] for key in image_keys if key in parts), None)
                key = next((key for key in caption_keys if key in parts), None)
                yield {
                    "image": {"bytes": image, "path": None},
                    "caption": key and _parse_caption(key, parts[key], caption_field),
                }
        except BROKEN_SHARD as error:
            log.warning("%s is broken after %d pairs, the rest is skipped: %s", file, count, error)
        except Exception as error:  # classes of each protocol
            raise UserError(
                f"the shard {file} cannot be opened ({first_line(error)}): replace it, then "
                "continue "
                "with resume=true"
            ) from error


def table_rows(states: Sequence[Any], **arguments: Any) -> Iterator[dict[str, Any]]:
    """Yields the pairs in shards with a list of strings as the caption.

    Args:
        states: sizes and times of the files. They are part of the cache key of `datasets`.
    """
    for pair in read_pairs(**arguments):
        try:
            texts = usable_captions(pair["caption"])
        except SkipRow:
            texts = []
        yield {**pair, "caption": texts}


def expand_braces(pattern: str) -> list[str]:
    """Expands braces as a shell does: `{0..9}`, which keeps leading zeros, and `{a,b}`."""
    braces = BRACES.search(pattern)
    if braces is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    if numbers:
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        choices = [f"{n:0{width}}" for n in range(int(numbers[1]), int(numbers[2]) + 1)]
    else:
        choices = braces[1].split(",")
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [path for choice in choices for path in expand_braces(before + choice + after)]


def _samples(file: str, keys: set[str]) -> Iterator[dict[str, bytes]]:
    """Yields the contents of consecutive members that share a name, by their endings."""
    name, parts = "", dict[str, bytes]()
    for path, content in _members(file):
        base, ending = _split_name(path)
        if base != name:
            if parts:
                yield parts
            name, parts = base, {}
        if ending in keys:
            parts.setdefault(ending, content.read())
    if parts:
        yield parts


def _members(file: str) -> Iterator[tuple[str, Any]]:
    return iter(StreamingDownloadManager().iter_archive(file))


def _split_name(path: str) -> tuple[str, str]:
    """Splits `a/b.seg.PNG` into `a/b` and `seg.png`."""
    folder, _, file = path.rpartition("/")
    stem, _, ending = file.partition(".")
    return f"{folder}/{stem}", ending.lower()


def _parse_caption(key: str, content: bytes, field: str) -> Any:
    if key.endswith("json"):
        try:
            value = json.loads(content)
        except ValueError:
            return {}  # not text, and counted as such
        return value.get(field) if isinstance(value, dict) else {}
    return content.decode("utf-8", errors="replace").strip()
