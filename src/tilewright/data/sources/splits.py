"""Division of a dataset into train and validation.

A dataset's own splits are used if it has them. Otherwise, a hash of each image assigns it to train
or validation. The assignment of an image does not depend on the machine, on the order of the
rows, or on rows that are added later.
"""

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Any, TypeVar

import numpy as np
from datasets import Dataset, Image, IterableDataset
from datasets.utils.file_utils import xopen

from tilewright.data.captions import find_captions
from tilewright.data.fingerprints import fingerprint_files
from tilewright.data.images import is_remote
from tilewright.errors import UserError

log = logging.getLogger(__name__)

Rows = TypeVar("Rows")

# Split -> names that datasets use for it, the most common first.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
    "zeroshot": ("zeroshot",),
}
NAME_TO_SPLIT = {name: split for split, names in SPLIT_NAMES.items() for name in names}

# Address on the Hugging Face Hub up to its revision: hf://datasets/user/name@revision/1.png
REVISION = re.compile(r"(hf://(?:datasets/|spaces/|buckets/)?[^/@]+(?:/[^/@]+)?)@[^/]+(?=/)")
READERS = 8  # threads that read and hash images
HEAD = 100  # rows of streaming data that are read first, to detect a tiny dataset


def group_by_split(paths: Sequence[str], description: str) -> dict[str, list[str]]:
    """Groups paths and addresses of data files by the split that their names determine.

    Only names below the common folder of all files count, so `/home/dev` does not. A file whose
    path names no split is for training. One line of the log counts the files of each split.
    """
    parts = [path.split("/") for path in paths]
    levels = zip(*(folders for *folders, _ in parts), strict=False)
    shared = sum(1 for _ in takewhile(lambda names: len({*names}) == 1, levels))
    groups: dict[str, list[str]] = {}
    for path, names in zip(paths, parts, strict=True):
        groups.setdefault(_split_from_path("/".join(names[shared:])), []).append(path)
    if len(groups) > 1:
        counts = (f"{len(group)} for {split}" for split, group in groups.items())
        log.info("files of %s by their names: %s", description, ", ".join(counts))
    return groups


def _split_from_path(path: str) -> str:
    """Returns the split that a file name or its folders determine, or `train` by default."""
    words = re.split(r"[^a-z]+", path.lower())
    # The last word wins, so that the name of the file precedes the name of its folder.
    return next((NAME_TO_SPLIT[word] for word in reversed(words) if word in NAME_TO_SPLIT), "train")


def resolve_splits(
    splits: Mapping[str, Rows],
    hold_out: Callable[[Rows], tuple[Rows, Rows]],
    description: str,
    hint: str,
) -> dict[str, Rows]:
    """Renames the splits of a dataset to this project's names, and adds a validation split.

    Without a validation split, `test` becomes the validation split. Without both, `hold_out`
    divides the training split. A single split is the training split, whatever its name. A split
    without rows does not count. If the training split has captions, a validation or test split
    without any is not used for validation. One line of the log has the sizes and the origin of the
    validation split. A warning names the splits that are not used.

    Args:
        hold_out: divides rows into (train, validation).
        description, hint: beginning and end of the error message.

    Raises:
        UserError: there is no training split, or no row.
    """
    filled = [name for name, rows in splits.items() if not _is_empty(rows)]
    if not filled:
        raise UserError(f"{description} has no rows: add some")
    chosen = {
        split: next(name for name in names if name in filled)
        for split, names in SPLIT_NAMES.items()
        if any(name in filled for name in names)
    }
    if len(filled) == 1:
        chosen = {"train": filled[0]}
    resolved = {split: splits[name] for split, name in chosen.items()}
    if "train" not in resolved:
        raise UserError(f"{description} has no training split, only {', '.join(splits)}: {hint}")
    is_captioned = _has_caption(resolved["train"])

    def can_validate(split: str) -> bool:
        return split in resolved and (not is_captioned or _has_caption(resolved[split]))

    if "validation" in resolved and not can_validate("validation"):
        del resolved["validation"], chosen["validation"]
    origin = "its split 'validation'"
    if "validation" not in resolved and can_validate("test"):
        resolved["validation"] = resolved.pop("test")
        origin = "its split 'test', because it has no split 'validation'"
    if "validation" not in resolved:
        resolved["train"], resolved["validation"] = hold_out(resolved["train"])
        origin = "held out by a hash of the images"
    log.info(
        "%s: %s for training, %s for validation (%s)",
        description, _size(resolved["train"]), _size(resolved["validation"]), origin,
    )  # fmt: skip
    unused = [f"{n!r} ({_size(splits[n])})" for n in splits if n not in chosen.values()]
    if unused:
        log.warning("splits of %s that are not used: %s", description, ", ".join(unused))
    return resolved


def _is_empty(rows: Any) -> bool:
    return not isinstance(rows, IterableDataset) and not len(rows)


def _has_caption(rows: Any) -> bool:
    """Returns True if a row has a caption. Streaming data is not searched."""
    if isinstance(rows, IterableDataset):
        return True
    return any(_are_captioned(rows))


def _are_captioned(rows: Dataset) -> Iterator[bool]:
    """Yields True for each row with a caption, and False for each other row."""
    for batch in rows.select_columns("caption").iter(1000):
        yield from (bool(find_captions(value)[0]) for value in batch["caption"])


def _size(rows: Any) -> str:
    is_streaming = isinstance(rows, IterableDataset)
    return "an unknown number of rows" if is_streaming else f"{len(rows):,} rows"


def hash_position(seed: int, identity: bytes | str) -> float:
    """Returns a hash of the seed and an image's identity, uniform in [0, 1)."""
    data = identity.encode() if isinstance(identity, str) else identity
    digest = hashlib.blake2b(data, digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48  # 48 bits: exact in a float, never 1.0


def moved_position(
    positions: Sequence[float] | np.ndarray, fraction: float, description: str
) -> float | None:
    """Returns the hash position whose image changes its split, so that no split is empty, or None.

    An image belongs to validation if its position is below `fraction`. If no position is, the
    lowest one moves to validation. If all are, the highest one moves to train.

    Raises:
        UserError: `fraction` is not between 0 and 1, or there are fewer than two different images.
    """
    require_fraction(fraction)
    distinct = np.unique(np.asarray(positions))
    if len(distinct) < 2:
        raise UserError(
            f"{description} has {len(distinct)} different image(s), too few for a training and a "
            "validation split: add images, or a validation split"
        )
    if distinct[0] >= fraction:
        return float(distinct[0])
    return float(distinct[-1]) if distinct[-1] < fraction else None


def is_held_out(position: Any, fraction: float, moved: float | None) -> Any:
    """Returns True if an image belongs to validation.

    Args:
        position: hash position of an image, or an array of them, which returns an array.
        moved: see `moved_position`.
    """
    return (position < fraction) != (position == moved)


def _moved_position(
    positions: np.ndarray, is_captioned: np.ndarray, fraction: float, description: str
) -> float | None:
    """Returns the position that moves, so that two captioned images are in different splits."""
    captioned = positions[is_captioned]
    is_enough = len(np.unique(captioned)) > 1
    return moved_position(captioned if is_enough else positions, fraction, description)


def hold_out_validation(
    rows: Dataset | IterableDataset, fraction: float, seed: int, description: str
) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset]:
    """Divides rows into (train, validation) by a hash of the images' bytes.

    Copies of an image are therefore in the same split. One line of the log counts them. If two
    images have captions, each split has one of them: `_moved_position` moves one image for this.

    A Dataset is read once, and `datasets` caches the positions on disk. An IterableDataset is
    filtered while it streams, so its validation split reads all of the data.
    """
    # Streaming data without features has encoded images.
    encoded = rows if rows.features is None else rows.cast_column("image", Image(decode=False))
    if isinstance(encoded, Dataset):
        table = encoded.select_columns("image").map(
            _hash_batch,
            batched=True,
            batch_size=256,
            remove_columns="image",
            fn_kwargs={"seed": seed, "files": fingerprint_files(encoded)},
            desc="Splitting into train and validation",
        )
        positions = np.array(table["position"])
        captioned = np.fromiter(_are_captioned(encoded), bool)
        moved = _moved_position(positions, captioned, fraction, description)
        _log_copies(encoded, positions, hash_position(seed, b""), description)
        held_out = is_held_out(positions, fraction, moved)
        return rows.select(np.flatnonzero(~held_out)), rows.select(np.flatnonzero(held_out))

    require_fraction(fraction)
    positions, captioned = np.empty(0), np.empty(0, bool)
    for row in encoded.take(HEAD):
        positions = np.append(positions, hash_position(seed, image_identity(row["image"])))
        captioned = np.append(captioned, bool(find_captions(row["caption"])[0]))
    moved = None
    if len(positions) < HEAD:
        moved = _moved_position(positions, captioned, fraction, description)
    rule = {"seed": seed, "fraction": fraction, "moved": moved}
    train, validation = (
        encoded.filter(_is_in_split, fn_kwargs={**rule, "validation": validation})
        for validation in (False, True)
    )
    return train, validation


def image_identity(record: Mapping[str, Any] | None) -> bytes:
    """Returns the bytes of an encoded image, or its path if it is missing or on another machine.

    The path has no revision of the Hub, so that a new revision moves no image to another split.
    """
    record = record or {}
    if record.get("bytes") is not None:
        return record["bytes"]
    path = record.get("path") or ""
    if is_remote(path):
        return REVISION.sub(r"\1", path).encode()
    try:
        with xopen(path, "rb") as file:
            return file.read()
    except Exception:  # also errors of archives; they are reported when the row is read
        return path.encode()


def require_fraction(fraction: float, name: str = "validation_fraction") -> None:
    """Raises a UserError unless a setting of the source is between 0 and 1."""
    if not 0 < fraction < 1:
        raise UserError(
            f"data.source.{name}={fraction} is not between 0 and 1: set it to 0.05, for example"
        )


def _hash_batch(batch: dict[str, list], seed: int, files: str) -> dict[str, list[float]]:
    """Returns the positions of a batch. `files` is only part of the cache key of `datasets`."""

    def position(image: Mapping[str, Any] | None) -> float:
        return hash_position(seed, image_identity(image))

    with ThreadPoolExecutor(READERS) as readers:  # reading and hashing release Python's lock
        return {"position": list(readers.map(position, batch["image"]))}


def _log_copies(rows: Dataset, positions: np.ndarray, no_image: float, description: str) -> None:
    """Logs the number of images that are copies of an earlier one, with an example."""
    _, first, inverse = np.unique(positions, return_index=True, return_inverse=True)
    copies = np.flatnonzero((first[inverse] < np.arange(len(rows))) & (positions != no_image))
    if len(copies):
        copy, original = (
            rows[int(index)]["image"]["path"] or f"row {index}"
            for index in (copies[0], first[inverse][copies[0]])
        )
        log.info(
            "%d of %d images of %s are copies, such as %r of %r: copies are in the same split",
            len(copies), len(rows), description, copy, original,
        )  # fmt: skip


def _is_in_split(
    row: dict[str, Any], seed: int, fraction: float, moved: float | None, validation: bool
) -> bool:
    position = hash_position(seed, image_identity(row["image"]))
    return is_held_out(position, fraction, moved) == validation
