"""Captioned images in tar shards, in the format of webdataset and img2dataset."""

import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
from datasets.exceptions import DatasetGenerationError

from tilewright.data.captions import CAPTION_COLUMNS, DefectCounts, find_captions
from tilewright.data.fingerprints import file_state
from tilewright.data.images import IMAGE_SUFFIXES
from tilewright.data.skipping import format_counts
from tilewright.data.sources.columns import select_image_and_caption
from tilewright.data.sources.listing import list_files
from tilewright.data.sources.splits import group_by_split, hold_out_validation, resolve_splits
from tilewright.data.sources.tar_members import BROKEN_SHARD, MissingEndError, read_members
from tilewright.data.sources.tar_samples import PairFormat, Sample, is_json, read_samples
from tilewright.data.sources.text_captions import CaptionsPerFile, lines_are_captions
from tilewright.errors import UserError, first_line
from tilewright.text_files import (
    check_encoding,
    decode_legacy,
    decode_unicode,
    guess_encoding,
    non_ascii_example,
)

log = logging.getLogger(__name__)

COMMON_KEYS = ("jpg", "jpeg", "png", "webp")
IMAGE_KEYS = (*COMMON_KEYS, *sorted({suffix[1:] for suffix in IMAGE_SUFFIXES} - {*COMMON_KEYS}))
CAPTION_KEYS = ("txt", "caption", "json")
FEATURES = Features(
    {"image": Image(decode=False), "caption": List(Value("string")), "problem": Value("string")}
)
TAR_SUFFIXES = (".tar", ".tgz", ".gz", ".bz2", ".xz")
TAR_NAME = re.compile(r"\.(tgz|tar(\.(gz|bz2|xz))?)$", re.IGNORECASE)
BRACES = re.compile(r"\{([^{}]*)\}")
MEMBERS_TO_CHECK = 100


@dataclass(frozen=True)
class WebDatasetSource:
    """Tar files whose members `NAME.jpg` and `NAME.txt` (or `.json`) are a pair.

    The file name determines its split ("val-0001.tar"), as for parquet files. All other files are
    for training. Names may have dots, as in `cat.v2.jpg`. Other members are not read, and a line of
    the log counts those among the first members.

    The loader of `datasets` for this format takes the columns from the first five pairs. It stops
    at the first pair that differs, such as a PNG among JPEGs, so it is not used here.

    Args:
        path: a file, a folder (its *.tar at any depth), a pattern with `*` or `{0000..0099}`, or a
            list of these. In an address (https://…, hf://…, s3://…) only braces are expanded.
        image_keys, caption_keys: endings of the members, in order of preference. Without
            image_keys, these are the endings of all image formats that can be read. Without
            caption_keys, images have no captions.
        caption_field: field of a `.json` member that holds the caption. None uses `caption` or
            `text`.
        captions_per_file: captions in a text member: "lines" for one per line, "one", or "auto",
            which chooses by the form of the lines in the first members.
        encoding: encoding of captions that are not Unicode. None guesses it by the first members.
        streaming: read during training. False first copies all pairs to the cache of `datasets`.
        validation_fraction: share of the training images to hold out if there is no file for
            validation.
        seed: seed of that choice.
    """

    path: str | Sequence[str]
    image_keys: str | Sequence[str] | None = None
    caption_keys: str | Sequence[str] | None = CAPTION_KEYS
    caption_field: str | None = None
    captions_per_file: CaptionsPerFile = "auto"
    encoding: str | None = None
    streaming: bool = True
    validation_fraction: float = 0.05
    seed: int = 0

    def load(self) -> DatasetDict | IterableDatasetDict:
        """Loads the splits. See `Source.load`."""
        description = f"webdataset at {self.path!r}"
        check_encoding(self.encoding)
        files = group_by_split(self.files(), description)
        training = files.get("train") or next(iter(files.values()))
        pair_format = self._choose_format(training[0])
        splits = {
            split: self._dataset(shards, pair_format, description)
            for split, shards in files.items()
        }
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
        """Returns the paths and addresses of the shards, each once, in order.

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
                files_below = list_files(path).select(TAR_SUFFIXES)
                matches = [str(file) for file in files_below if TAR_NAME.search(file.name)]
            elif path.is_file():  # its name may have signs of patterns
                matches = [str(path)]
            else:
                matches = sorted(glob(str(path), recursive=True))  # noqa: PTH207
            if not matches:
                raise UserError(
                    f"{pattern!r} matches no tar file: give a file, a folder or a pattern, or "
                    'several as "data.source.path={/a,/b}"'
                )
            files += matches
        if not files:
            raise UserError(f"data.source.path={self.path} names no tar file: give one or a folder")
        return list(dict.fromkeys(files))

    def _choose_format(self, shard: str) -> PairFormat:
        """Chooses the format of pairs by the first members of a shard.

        Raises:
            UserError: the shard cannot be read, or has no pair.
        """
        pair_format = PairFormat(
            # Tuples, because `datasets` treats each list as a list of shards.
            _normalize_keys(self.image_keys or IMAGE_KEYS),
            _normalize_keys(self.caption_keys or ()),
            CAPTION_COLUMNS if self.caption_field is None else (self.caption_field,),
        )
        endings: Counter[str] = Counter()
        samples: list[Sample] = []
        try:
            members = islice(read_members(shard), MEMBERS_TO_CHECK)
            for sample in read_samples(members, pair_format, endings):
                samples.append(sample)
        except Exception as error:  # classes of tarfile, fsspec and each protocol
            if not samples:
                raise UserError(
                    f"{shard} cannot be read as a tar file ({first_line(error)}): replace or "
                    "remove it"
                ) from error
        unread = endings.copy()
        endings.update(key for sample in samples for key in sample.parts)
        for role, expected in (
            ("image", pair_format.image_keys),
            ("caption", pair_format.caption_keys),
        ):
            if expected and not endings.keys() & set(expected):
                names = expected if len(expected) <= 5 else [*expected[:4], "…"]
                raise UserError(
                    f"{shard} has no member that ends in {' or '.join(names)} among its first "
                    f"{MEMBERS_TO_CHECK}, only {_list_endings(endings) or 'none'}: set "
                    f"data.source.{role}_keys"
                    f"{' (null for images without captions)' if role == 'caption' else ''}"
                )
        if not any(pair_format.is_pair(sample) for sample in samples):
            raise UserError(
                f"{shard} has no pair among its first {MEMBERS_TO_CHECK} members: give an image "
                "and its caption the same name, and store one after the other"
            )
        if unread:
            log.info(
                "%d of the first %d members of %s are not read (%s): data.source.image_keys and "
                "caption_keys choose their endings",
                unread.total(), endings.total(), shard, _list_endings(unread),
            )  # fmt: skip
        return self._choose_caption_form(pair_format, samples, shard)

    def _choose_caption_form(
        self, pair_format: PairFormat, samples: Sequence[Sample], shard: str
    ) -> PairFormat:
        contents = {
            f"{sample.name}.{key}": sample.parts[key]
            for sample in samples
            if (key := pair_format.caption_key(sample))
        }
        legacy = {name: text for name, text in contents.items() if decode_unicode(text) is None}
        encoding = self.encoding or (guess_encoding(legacy.values()) if legacy else None)
        examples = (
            (name, decode_legacy(text, encoding)) for name, text in legacy.items() if encoding
        )
        name, example = next(((name, text) for name, text in examples if text), ("", ""))
        if example and not self.encoding:
            log.warning(
                "captions in %s that are not UTF-8 are read as %s, such as %s (%s): if that is "
                "wrong, set data.source.encoding",
                shard, encoding, name, non_ascii_example(example),
            )  # fmt: skip
        pair_format = replace(pair_format, encoding=encoding)
        texts = {
            repr(sample.name): text
            for sample in samples
            if not is_json(pair_format.caption_key(sample) or "json")
            and isinstance(text := pair_format.caption(sample), str)
        }
        return replace(pair_format, per_line=lines_are_captions(self.captions_per_file, texts))

    def _dataset(
        self, files: list[str], pair_format: PairFormat, description: str
    ) -> Dataset | IterableDataset:
        arguments: dict[str, Any] = {"files": files, "pair_format": pair_format}
        if self.streaming:
            return IterableDataset.from_generator(read_pairs, gen_kwargs=arguments)
        states = tuple(map(file_state, files))  # a changed file is read again
        arguments = {**arguments, "states": states}
        try:
            rows = Dataset.from_generator(table_rows, features=FEATURES, gen_kwargs=arguments)
        except DatasetGenerationError as error:
            cause = error.__cause__ or error
            if isinstance(cause, UserError):
                raise cause from error
            raise UserError(
                f"{description} cannot be copied to the cache of datasets ({first_line(cause)}): "
                "set data.source.streaming=true to read the shards during training"
            ) from error
        problems = [problem for problem in rows["problem"] if problem]
        count = len(rows) - len(problems)
        if not count:
            raise UserError(
                f"{description} has no rows ({'; '.join(problems)}): add some, or set "
                "data.source.image_keys and data.source.caption_keys"
            )
        for problem in problems:
            log.warning(problem)
        return select_image_and_caption(rows.select(range(count)), "image", "caption", description)


def read_pairs(files: list[str], pair_format: PairFormat) -> Iterator[dict[str, Any]]:
    """Yields the pairs in shards. A caption is returned as stored and may not be text.

    A broken shard ends early, with a warning.

    Raises:
        UserError: a shard cannot be opened.
    """
    for sample in _read_shards(files, pair_format):
        if isinstance(sample, str):
            log.warning(sample)
        else:
            yield _pair(sample, pair_format)


def table_rows(
    files: list[str], pair_format: PairFormat, states: Sequence[Any]
) -> Iterator[dict[str, Any]]:
    """Yields the pairs in shards, with a list of strings as the caption.

    The last rows are messages about broken shards and unusable captions. `datasets` caches them
    with the pairs, so that each load can repeat them.

    Args:
        states: states of the files. They are only part of the cache key of `datasets`.
    """
    unusable = DefectCounts()
    problems: list[str] = []
    for sample in _read_shards(files, pair_format):
        if isinstance(sample, str):
            problems.append(sample)
            continue
        pair = _pair(sample, pair_format)
        texts, defects = find_captions(pair["caption"])
        key = pair_format.caption_key(sample)
        if pair_format.caption_keys:
            unusable.add(f"{sample.name}.{key}" if key else sample.name, defects)
        yield {**pair, "caption": texts, "problem": None}
    if unusable:
        problems.append(f"shards have values that are not used as captions: {unusable}")
    for problem in problems:
        yield {"image": None, "caption": [], "problem": problem}


def _read_shards(files: Sequence[str], pair_format: PairFormat) -> Iterator[Sample | str]:
    """Yields the samples in shards, and a message for each shard that is broken.

    Raises:
        UserError: a shard cannot be opened.
    """
    for file in files:
        count = 0
        try:
            for sample in read_samples(read_members(file), pair_format):
                count += 1
                yield sample
        except MissingEndError:
            yield (
                f"{file} has no end marker after {count} pairs: replace it if pairs are missing, "
                "because it may be truncated"
            )
        except BROKEN_SHARD as error:
            yield f"{file} is broken after {count} pairs, the rest is skipped: {error}"
        except Exception as error:  # classes of each protocol
            raise UserError(
                f"the shard {file} cannot be opened ({first_line(error)}): replace it, then "
                "continue with resume=true"
            ) from error


def _pair(sample: Sample, pair_format: PairFormat) -> dict[str, Any]:
    image = pair_format.image(sample)
    encoded = None if image is None else {"bytes": image, "path": None}
    return {"image": encoded, "caption": pair_format.caption(sample)}


def expand_braces(pattern: str) -> list[str]:
    """Expands braces as a shell does: `{0..9}`, which keeps leading zeros, and `{a,b}`."""
    braces = BRACES.search(pattern)
    if braces is None:
        return [pattern]
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    if numbers:
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        first, last = int(numbers[1]), int(numbers[2])
        step = 1 if first <= last else -1
        choices = [f"{n:0{width}}" for n in range(first, last + step, step)]
    else:
        choices = braces[1].split(",")
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [path for choice in choices for path in expand_braces(before + choice + after)]


def _list_endings(counts: Mapping[str, int]) -> str:
    return format_counts({ending or "no ending": count for ending, count in counts.items()})


def _normalize_keys(keys: str | Sequence[str]) -> tuple[str, ...]:
    """Returns endings in lower case and without a leading dot. One may be given as a string."""
    return tuple(key.lower().lstrip(".") for key in ([keys] if isinstance(keys, str) else keys))
