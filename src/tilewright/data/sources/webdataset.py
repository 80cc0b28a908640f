"""Captioned pictures in tar shards, as webdataset and img2dataset write them."""

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

from tilewright.data.filters import captions_of
from tilewright.data.skipped import Unusable
from tilewright.data.sources.tables import as_pairs
from tilewright.data.splits import halve_rows, settle, split_in_name
from tilewright.errors import UserError

log = logging.getLogger(__name__)

PICTURES = ("jpg", "jpeg", "png", "webp")
CAPTIONS = ("txt", "json")
FEATURES = Features({"image": Image(decode=False), "caption": List(Value("string"))})
BROKEN = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
BRACES = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class WebDatasetSource:
    """Tar files whose members `NAME.jpg` and `NAME.txt` (or `.json`) are a pair.

    A file is of the split that its name says ("val-0001.tar"), as with parquet; the others are for
    training. A member that is no part of a pair is passed over.

    `datasets` has a loader of its own for these. It takes the columns from the first five pairs and
    ends at the first that differs, such as a PNG among JPEGs, or text that is not UTF-8.

    Args:
        path: a file, a folder (its *.tar, at any depth), a pattern with `*` or `{0000..0099}`, or a
            list of these. An address (https://…, hf://…, s3://…) is read as it is, braces expanded.
        image_keys, caption_keys: endings of the members, the first that is there counts.
        caption_field: which field of a `.json` is the caption.
        streaming: read while training; else all pairs are first copied to the cache of `datasets`.
        validation_fraction: the share of training pictures that is held out when no file is of a
            split to validate on.
    """

    path: str | Sequence[str]
    image_keys: Sequence[str] = PICTURES
    caption_keys: Sequence[str] = CAPTIONS
    caption_field: str = "caption"
    streaming: bool = True
    validation_fraction: float = 0.05
    seed: int = 0

    def load(self) -> DatasetDict | IterableDatasetDict:
        """Load the splits; see `Source.load`."""
        what = f"webdataset at {self.path!r}"
        shards: dict[str, list[str]] = {}
        for file in self.files():
            shards.setdefault(split_in_name(file), []).append(file)
        self._check(next(iter(shards.values()))[0])
        splits = {split: self._rows(files, what) for split, files in shards.items()}
        halve = partial(halve_rows, fraction=self.validation_fraction, seed=self.seed, what=what)
        found = settle(splits, halve, what, "put 'train' in the name of a file")
        return IterableDatasetDict(found) if self.streaming else DatasetDict(found)

    def files(self) -> list[str]:
        """Paths and addresses of the shards, in order.

        Raises:
            UserError: a pattern has none.
        """
        patterns = [self.path] if isinstance(self.path, str) else list(self.path)
        found = []
        for pattern in (one for many in patterns for one in expand(many)):
            if "://" in pattern:
                found.append(pattern)
                continue
            path = Path(pattern).expanduser()
            inside = str(path / "**" / "*.tar") if path.is_dir() else str(path)
            files = sorted(glob(inside, recursive=True))  # noqa: PTH207
            if not files:
                raise UserError(f"no tar file at {pattern!r}: give a file, a folder or a pattern")
            found += files
        return found

    def _check(self, shard: str) -> None:
        """Reads the beginning of a shard: what is wrong with all of them comes out here."""
        keys = {"image": self.image_keys, "caption": self.caption_keys}
        seen: set[str] = set()
        try:
            for name, _ in islice(_members(shard), 100):
                seen.add(_split_name(name)[1])
        except Exception as error:  # of tarfile, fsspec, and of each kind of address
            if not seen:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise UserError(f"{shard} cannot be read as a tar file: {reason}") from error
        for role, wanted in keys.items():
            if not seen & set(wanted):
                raise UserError(
                    f"{shard} has no member that ends in {' or '.join(wanted)}: it has "
                    f"{', '.join(sorted(seen)) or 'none'}; set {role}_keys"
                )

    def _rows(self, files: list[str], what: str) -> Dataset | IterableDataset:
        # `datasets` takes every list for one of shards, and the endings are none.
        keys = {"image_keys": tuple(self.image_keys), "caption_keys": tuple(self.caption_keys)}
        arguments: dict[str, Any] = {"files": files, **keys, "caption_field": self.caption_field}
        if self.streaming:
            return IterableDataset.from_generator(pairs, gen_kwargs=arguments)
        stamps = tuple(_stamp(file) for file in files)  # a file that has changed is read anew
        arguments = {**arguments, "stamps": stamps}
        rows = Dataset.from_generator(table_rows, features=FEATURES, gen_kwargs=arguments)
        return as_pairs(rows, "image", "caption", what)


def pairs(
    files: list[str], image_keys: Sequence[str], caption_keys: Sequence[str], caption_field: str
) -> Iterator[dict[str, Any]]:
    """The pairs of shards; a caption is as it was found there, text or not.

    A shard that is broken ends early, with a warning.

    Raises:
        UserError: a shard cannot be opened.
    """
    for file in files:
        found = 0
        try:
            for parts in _samples(file, {*image_keys, *caption_keys}):
                found += 1
                picture = next((parts[key] for key in image_keys if key in parts), None)
                caption = next((key for key in caption_keys if key in parts), None)
                yield {
                    "image": {"bytes": picture, "path": None},
                    "caption": caption and _caption(caption, parts[caption], caption_field),
                }
        except BROKEN as error:
            log.warning("%s is broken after %d pairs, the rest is skipped: %s", file, found, error)
        except Exception as error:  # of the classes of each kind of address
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"the shard {file} cannot be opened ({reason}): mend that, then go on with "
                "resume=true"
            ) from error


def table_rows(stamps: Sequence[Any], **arguments: Any) -> Iterator[dict[str, Any]]:
    """The pairs of shards for a table, in which all captions are lists of text."""
    for pair in pairs(**arguments):
        try:
            texts = captions_of(pair["caption"])
        except Unusable:
            texts = []
        yield {**pair, "caption": texts}


def expand(pattern: str) -> list[str]:
    """Braces as shells have them: `{0..9}`, with leading zeros kept, and `{a,b}`."""
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
    return [path for choice in choices for path in expand(before + choice + after)]


def _samples(file: str, wanted: set[str]) -> Iterator[dict[str, bytes]]:
    """What members of one name hold, by their endings."""
    name, parts = "", dict[str, bytes]()
    for path, content in _members(file):
        base, ending = _split_name(path)
        if base != name:
            if parts:
                yield parts
            name, parts = base, {}
        if ending in wanted:
            parts.setdefault(ending, content.read())
    if parts:
        yield parts


def _members(file: str) -> Iterator[tuple[str, Any]]:
    return iter(StreamingDownloadManager().iter_archive(file))


def _split_name(path: str) -> tuple[str, str]:
    """`a/b.seg.PNG` to `a/b` and `seg.png`."""
    folder, _, file = path.rpartition("/")
    stem, _, ending = file.partition(".")
    return f"{folder}/{stem}", ending.lower()


def _caption(key: str, content: bytes, field: str) -> Any:
    if key.endswith("json"):
        try:
            found = json.loads(content)
        except ValueError:
            return {}  # which is no text, and counted as that
        return found.get(field) if isinstance(found, dict) else {}
    return content.decode("utf-8", errors="replace").strip()


def _stamp(file: str) -> tuple[int, int] | None:
    if "://" in file:
        return None
    state = Path(file).stat()
    return state.st_size, state.st_mtime_ns
