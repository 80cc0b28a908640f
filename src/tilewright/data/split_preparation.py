"""Preparation of loaded splits: filters, order of rows, overfitting, and parts such as [:100]."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from datasets import Dataset, Image, IterableDataset, ReadInstruction

from tilewright.data.batches import TrainingBatches
from tilewright.data.captions import find_captions
from tilewright.data.filters import Filter, filter_table
from tilewright.data.row_reader import image_path
from tilewright.data.seeding import ROW_ORDER_SEED
from tilewright.data.skipping import SkipReason, format_counts
from tilewright.errors import UserError

log = logging.getLogger(__name__)


def prepare_splits(
    splits: Mapping[str, Any], filters: Sequence[Filter], require_captions: bool = True
) -> dict[str, Any]:
    """Keeps images encoded, drops rows without a caption and by the filters, and shuffles the rest.

    The order is random but fixed. The first rows of a split are therefore a sample of all its rows,
    and the same on every machine. Files usually are in the order of their class.

    Streaming splits are returned unchanged. `RowReader` filters their rows, and `read_sample`
    shuffles them.

    Args:
        require_captions: drop rows without a caption.

    Raises:
        UserError: no row of the training or validation split is left.
    """
    prepared: dict[str, Any] = {}
    for name, split in splits.items():
        if isinstance(split, IterableDataset):
            prepared[name] = split
            continue
        encoded = split.cast_column("image", Image(decode=False))
        kept = drop_uncaptioned(name, encoded) if require_captions else encoded
        if not len(kept):
            continue
        if filters:
            kept = filter_table(name, kept, filters, require_captions)
        generator = torch.Generator().manual_seed(ROW_ORDER_SEED)
        prepared[name] = kept.select(torch.randperm(len(kept), generator=generator).numpy())
    return prepared


def drop_uncaptioned(name: str, rows: Dataset) -> Dataset:
    """Drops the rows without a caption. Warnings count these, and unusable captions of other rows.

    Args:
        name: name of the split, for messages.
        rows: rows with an `image` (encoded) and a `caption`.

    Raises:
        UserError: no row of the training or validation split has a caption.
    """
    kept: list[int] = []
    skipped: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    batches = rows.select_columns("caption").iter(1000)
    for index, value in enumerate(value for batch in batches for value in batch["caption"]):
        texts, defects = find_captions(value)
        if texts:
            kept.append(index)
        else:
            defects = Counter({next(iter(defects)): 1})
        counts = unused if texts else skipped
        for reason, count in defects.items():
            if reason not in counts:
                reason = SkipReason(reason, image_path(rows[index]["image"]) or f"row {index}")
            counts[reason] += count
    if skipped and not kept and name in ("train", "validation"):
        raise UserError(
            f"no row of the split {name} has a caption ({format_counts(skipped)}): add captions, "
            "or correct the settings of data.source, such as validation_fraction"
        )
    if skipped:
        log.warning(
            "%d of %d rows of %s have no caption and are skipped: %s",
            len(rows) - len(kept), len(rows), name, format_counts(skipped),
        )  # fmt: skip
    if unused:
        log.warning(
            "some captions of %s are left out, but their rows have others: %s",
            name, format_counts(unused),
        )  # fmt: skip
    return rows.select(kept) if skipped else rows


def rows_of_first_batches(
    train: Dataset | IterableDataset, batches: int, batch_size: int, seed: int
) -> Dataset:
    """Returns the rows of the first training batches, in their order, for overfitting.

    Raises:
        UserError: the data streams.
    """
    if isinstance(train, IterableDataset):
        raise UserError(
            f"data.overfit_batches={batches} needs random access, which streaming data does not "
            "have: set data.source.streaming=false"
        )
    first = islice(TrainingBatches(len(train), batch_size, seed), batches)
    return train.select([item.row for batch in first for item in batch])


def slice_split(rows: Dataset | IterableDataset, name: str) -> Dataset | IterableDataset:
    """Returns the part of a split that a name such as validation[2000:3000] selects.

    The syntax is that of `datasets`. A name without brackets selects all rows. A part is a sample,
    because the rows have been shuffled.

    Raises:
        UserError: the slice is invalid or empty, or the split streams.
    """
    split, bracket, _ = name.partition("[")
    if not bracket:
        return rows
    if isinstance(rows, IterableDataset):
        raise UserError(
            f"{name} needs random access, which streaming data does not have: "
            "set data.source.streaming=false"
        )
    try:
        (part,) = ReadInstruction.from_spec(name).to_absolute({split: len(rows)})
    except ValueError as error:
        raise UserError(f"{name} is not a valid slice: write it like {split}[2000:3000]") from error
    if part.from_ >= part.to:
        raise UserError(f"{name} is empty: the split has {len(rows)} rows, so lower its start")
    return rows.select(range(part.from_, part.to))
