"""Which rows make which batch: a pure function of the batch's number, on any number of processes.

Each process takes its share of every batch, so that a training on several processes sees the
batches of one process's, and one that resumes goes on with the batch that would have come next.
"""

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from itertools import count
from typing import NamedTuple

import torch
from numpy.random import SeedSequence
from torch.utils.data import Sampler


class Draw(NamedTuple):
    """A row that is drawn, with what its random numbers follow from; None: from nothing."""

    row: int
    seed: tuple[int, ...] | None


def seed_of(*numbers: int) -> int:
    """One seed of several numbers, each from 0 up; close numbers give unrelated seeds."""
    return int(SeedSequence(numbers).generate_state(1)[0])


@contextlib.contextmanager
def drawn_from(*seed: int) -> Iterator[None]:
    """Torch's random numbers on the CPU follow from `seed` in here, and then go on as before."""
    # torch's fork_rng and manual_seed look after every device, which takes longer than the rest.
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed_of(*seed))
    try:
        yield
    finally:
        generator.set_state(state)


class TrainingBatches(Sampler[list[Draw]]):
    """Batches without end: the rows in an order that is new in each epoch, none left out.

    A batch may hold the end of one epoch and the beginning of the next.

    Args:
        rows: how many there are.
        batch_size: rows of a batch, of all processes together.
        seed: of the order.
        start: number of the first batch.
        rank, processes: this process among those that share each batch.
        repeated: the first so many batches come again and again, as they were; 0 for all.
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
        self.repeated = repeated
        self.share = batch_size // processes
        self.first = rank * self.share
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __iter__(self) -> Iterator[list[Draw]]:
        for number in count(self.start):
            if self.repeated:
                number %= self.repeated
            first = number * self.batch_size + self.first
            yield self._draws(first, first + self.share)

    def _draws(self, position: int, end: int) -> list[Draw]:
        drawn: list[Draw] = []
        while position < end:
            epoch, place = divmod(position, self.rows)
            rows = self._order(epoch)[place : place + end - position].tolist()
            drawn += [Draw(row, (self.seed, epoch, row)) for row in rows]
            position += len(rows)
        return drawn

    def _shuffled(self, epoch: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
        return torch.randperm(self.rows, generator=generator)


class EvaluationBatches(Sampler[list[int]]):
    """Every row once, in its own order; no process gets a row of another, and each has its part.

    The last batch is smaller, or, where it would have no row for some process, part of the one
    before it.
    """

    def __init__(self, rows: int, batch_size: int, rank: int = 0, processes: int = 1):
        self.rank, self.processes = rank, processes
        self.starts = list(range(0, rows, batch_size))
        if len(self.starts) > 1 and rows - self.starts[-1] < processes:
            del self.starts[-1]
        self.ends = [*self.starts[1:], rows]

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[list[int]]:
        for start, end in zip(self.starts, self.ends, strict=True):
            first, last = (
                start + (end - start) * rank // self.processes
                for rank in (self.rank, self.rank + 1)
            )
            yield list(range(first, last))
