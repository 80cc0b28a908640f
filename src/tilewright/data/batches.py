"""Batch samplers: the rows of each batch as a function of the position in the training.

Each process takes its share of each batch. A training on several processes therefore sees the same
batches as a training on one process. A resumed training continues with the next row, also with
another batch size. `BatchLoader` loads the batches.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from itertools import count, islice
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Sampler

from tilewright.data.seeding import derive_seed


class SeededIndex(NamedTuple):
    """Index of a row, with the seed of the row's random numbers.

    Attributes:
        row: index of the row in its split.
        seed: (seed of the training, epoch, row), or None for a row without random numbers.
    """

    row: int
    seed: tuple[int, int, int] | None


class TrainingBatches(Sampler[list[SeededIndex]]):
    """Endless batches of all rows, in a new random order in each epoch.

    A batch may contain the end of one epoch and the beginning of the next.

    Args:
        rows: number of rows of the split.
        batch_size: rows of a batch, summed over all processes.
        seed: seed of the order.
        start: number of rows in earlier batches, summed over all processes.
        rank: rank of this process.
        processes: number of processes that share each batch.
        repeated: repeat the first `repeated` batches forever. 0 uses all batches.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        processes: int = 1,
        repeated: int = 0,
    ):
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.repeated_rows = repeated * batch_size
        self.share = batch_size // processes
        self.offset = rank * self.share
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        for first in count(self.start + self.offset, self.batch_size):
            yield self._rows_between(first, first + self.share)

    def _rows_between(self, position: int, end: int) -> list[SeededIndex]:
        """Returns the rows at the positions [position, end) of the sequence of all epochs."""
        batch: list[SeededIndex] = []
        while position < end:
            length = end - position
            start = position
            if self.repeated_rows:
                start %= self.repeated_rows
                length = min(length, self.repeated_rows - start)
            epoch, offset = divmod(start, self.rows)
            rows = self._order(epoch)[offset : offset + length].tolist()
            batch += [SeededIndex(row, (self.seed, epoch, row)) for row in rows]
            position += len(rows)
        return batch

    def _shuffled(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
        return torch.randperm(self.rows, generator=generator)


class EvaluationBatches(Sampler[list[int]]):
    """Each row once, in order. Each process gets a part of each batch, which may be empty.

    Args:
        rows: number of rows of the split.
        batch_size: rows of a batch, summed over all processes.
        rank: rank of this process.
        processes: number of processes that share each batch.
    """

    def __init__(self, rows: int, batch_size: int, rank: int = 0, processes: int = 1):
        self.rank, self.processes = rank, processes
        self.batches = [
            range(first, min(first + batch_size, rows)) for first in range(0, rows, batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            # Rounded up, so that the first process has a row in every batch.
            start, stop = (
                math.ceil(len(batch) * rank / self.processes) for rank in (self.rank, self.rank + 1)
            )
            yield list(batch[start:stop])


class BatchLoader(DataLoader):
    """DataLoader whose batches pass through a function in this process.

    A wrapper around a DataLoader would hide it from Lightning, which ends the workers of each
    DataLoader after a training. Workers that remain can block the exit of their process.

    Args:
        postprocess: receives the iterator of the batches and yields other batches.
        arguments: those of `DataLoader`.
    """

    def __init__(
        self, *args: Any, postprocess: Callable[[Iterator], Iterator] = iter, **arguments: Any
    ):
        super().__init__(*args, **arguments)
        self.postprocess = postprocess

    def __iter__(self) -> Iterator:  # type: ignore[override]
        return self.postprocess(super().__iter__())


def mark_updates(batches: Iterable[dict], count: int, start: int = 0) -> Iterator[dict]:
    """Yields batches with the number of rows and the text tokens of their update.

    Each batch has the `rows` of all batches of its update as `update_rows`, their text tokens as
    `update_text`, and its index among them as `update_index`. A loss can then be a mean over all
    rows or text tokens of the update.

    Args:
        batches: batches, with or without text tokens.
        count: batches per update.
        start: index of the first batch in the training. Lightning ends an update at multiples of
            `count`, so the first update of a run that resumes with another `count` may be shorter.
    """
    batches, length = iter(batches), count - start % count
    while update := list(islice(batches, length)):
        length = count
        shared: dict[str, list] = {"update_rows": [batch["rows"] for batch in update]}
        if "text" in update[0]:
            shared["update_text"] = [batch["text"][: batch["rows"]] for batch in update]
        for index, batch in enumerate(update):
            yield {**batch, **shared, "update_index": index}
