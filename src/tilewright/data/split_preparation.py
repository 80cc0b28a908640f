"""Preparation of loaded splits: filters, order of rows, overfitting, and parts such as [:100]."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from datasets import Dataset, Image, IterableDataset, ReadInstruction

from tilewright.data.batches import TrainingBatches
from tilewright.data.filters import Filter, filter_table
from tilewright.data.seeding import ROW_ORDER_SEED
from tilewright.errors import UserError


def prepare_splits(splits: Mapping[str, Any], filters: Sequence[Filter]) -> dict[str, Any]:
    """Keeps images encoded, drops the rows that the filters do not keep, and shuffles the others.

    The order is random but fixed. The first rows of a split are therefore a sample of all its rows,
    and the same on every machine. Files usually are in the order of their class.

    Streaming splits are returned unchanged. `RowReader` filters their rows, and `read_sample`
    shuffles them.
    """
    prepared: dict[str, Any] = {}
    for name, split in splits.items():
        if isinstance(split, IterableDataset):
            prepared[name] = split
            continue
        encoded = split.cast_column("image", Image(decode=False))
        filtered = filter_table(name, encoded, filters) if filters else encoded
        generator = torch.Generator().manual_seed(ROW_ORDER_SEED)
        prepared[name] = filtered.select(torch.randperm(len(filtered), generator=generator).numpy())
    return prepared


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
