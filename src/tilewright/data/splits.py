"""How a data set is divided into train and validation, and a split into parts.

A data set's own splits are used where it has them. Where it has none, a picture's side is decided
by a hash of the picture itself: the same picture is always on the same side, however many rows are
added around it, in whatever order they come, on every machine.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from datasets import Dataset, Image, IterableDataset, ReadInstruction

from tilewright.errors import UserError

T = TypeVar("T")

# What this project calls a split, and the names it goes by elsewhere, the likeliest first.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
    "zeroshot": ("zeroshot",),
}
CANONICAL = {name: split for split, names in SPLIT_NAMES.items() for name in names}


def split_in_name(file: Path | str) -> str:
    """The split that a file belongs to by its name: `train` unless it has the name of another."""
    words = re.split(r"[^a-z]+", str(file).lower())
    # The last word counts: that of the file goes before that of its folder.
    return next((CANONICAL[word] for word in reversed(words) if word in CANONICAL), "train")


PEEK = 100  # rows of a stream that are read ahead, to see whether it is a tiny one


def settle(
    splits: Mapping[str, T], halve: Callable[[T], tuple[T, T]], what: str, way_out: str
) -> dict[str, T]:
    """Give the splits of a data set this project's names; make a validation split if need be.

    Without a validation split, `test` serves as one; without either, `halve` divides the training
    split into (train, validation). A lone split is the training split, whatever its name.

    Raises:
        UserError: no split is to train on; the message opens with `what`, ends with `way_out`.
    """
    found = {
        split: next(splits[name] for name in names if name in splits)
        for split, names in SPLIT_NAMES.items()
        if any(name in splits for name in names)
    }
    if len(splits) == 1:
        found = {"train": next(iter(splits.values()))}
    if "train" not in found:
        raise UserError(f"{what} has no training split, only {', '.join(splits)}: {way_out}")
    if "validation" not in found and "test" in found:
        found["validation"] = found.pop("test")
    if "validation" not in found:
        found["train"], found["validation"] = halve(found["train"])
    return found


def position(seed: int, identity: bytes | str) -> float:
    """A number in [0, 1) that is a pure function of the seed and of what identifies a picture."""
    data = identity.encode() if isinstance(identity, str) else identity
    digest = hashlib.blake2b(data, digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48  # 48 bits: exact in a float, never 1.0


def cut(positions: Sequence[float] | np.ndarray, fraction: float, what: str) -> float:
    """The position below which a row is for validation: `fraction`, unless a side came out empty.

    A handful of rows may all hash to one side. The cut then moves just far enough for the lowest
    position to be validation, or the highest to be training. It moves back once there are more
    rows: only for such a handful can rows that are added change the side of one that was there.

    Raises:
        UserError: fraction is not between 0 and 1, or there are no two different pictures.
    """
    check_fraction(fraction)
    distinct = np.unique(np.asarray(positions))
    if len(distinct) < 2:
        raise UserError(
            f"{what} has {len(distinct)} different picture(s), too few for a training and a "
            "validation split: add pictures, or a validation split"
        )
    return float(np.clip(fraction, distinct[1], distinct[-1]))


def halve_rows(
    rows: Dataset | IterableDataset, fraction: float, seed: int, what: str
) -> tuple[Dataset | IterableDataset, Dataset | IterableDataset]:
    """Divide rows with an `image` column into (train, validation) by the pictures' own bytes.

    A Dataset is read through once; the positions are cached beside it on disk, as datasets does
    with any map. An IterableDataset is filtered as it streams, so its validation split reads the
    whole stream to find its share.
    """
    # A stream that does not say what its columns are has its pictures encoded.
    encoded = rows if rows.features is None else rows.cast_column("image", Image(decode=False))
    if isinstance(encoded, Dataset):
        table = encoded.select_columns("image").map(
            _positions,
            batched=True,
            batch_size=256,
            remove_columns="image",
            fn_kwargs={"seed": seed},
            desc="Splitting into train and validation",
        )
        positions = np.array(table["position"])
        limit = cut(positions, fraction, what)
        return (
            rows.select(np.flatnonzero(positions >= limit)),
            rows.select(np.flatnonzero(positions < limit)),
        )

    check_fraction(fraction)
    head = [position(seed, identity(row["image"])) for row in encoded.take(PEEK)]
    limit = fraction if len(head) == PEEK else cut(head, fraction, what)
    train, validation = (
        encoded.filter(_is_validation, fn_kwargs={"seed": seed, "limit": limit, "wanted": wanted})
        for wanted in (False, True)
    )
    return train, validation


def identity(record: Mapping[str, Any] | None) -> bytes:
    """What makes an encoded picture that picture: its bytes, or its path if they are gone."""
    record = record or {}
    if record.get("bytes") is not None:
        return record["bytes"]
    path = record.get("path") or ""
    try:
        return Path(path).read_bytes()
    except OSError:  # an address, or a file that has gone: reading the row will tell
        return path.encode()


def _positions(batch: dict[str, list], seed: int) -> dict[str, list[float]]:
    return {"position": [position(seed, identity(record)) for record in batch["image"]]}


def _is_validation(row: dict[str, Any], seed: int, limit: float, wanted: bool) -> bool:
    return (position(seed, identity(row["image"])) < limit) == wanted


def part_of(rows: Dataset | IterableDataset, name: str) -> Dataset | IterableDataset:
    """Of a split, the rows that its name takes: validation[2000:3000], as `datasets` reads it.

    Raises:
        UserError: the part is unreadable or empty, or the split streams.
    """
    split, bracket, _ = name.partition("[")
    if not bracket:
        return rows
    if isinstance(rows, IterableDataset):
        raise UserError(f"a stream has no part {name}: set data.source.streaming=false")
    try:
        (part,) = ReadInstruction.from_spec(name).to_absolute({split: len(rows)})
    except ValueError as error:
        raise UserError(f"{name} is no part of a split; {split}[2000:3000] is one") from error
    if part.from_ >= part.to:
        raise UserError(f"there is nothing in {name}: the split has {len(rows)} rows")
    return rows.select(range(part.from_, part.to))


def check_fraction(fraction: float) -> None:
    """Raise a UserError unless a split can be that share of a data set."""
    if not 0 < fraction < 1:
        raise UserError(f"no split can be a fraction {fraction} of the data: say between 0 and 1")
