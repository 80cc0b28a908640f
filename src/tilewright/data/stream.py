"""Data that streams by: shared out without a row lost or read twice, shuffled, and resumed exactly.

The stream is divided into parts, one for each process that trains and each of its workers. A part's
shards come in another order in each epoch, several at a time, and its rows are shuffled in blocks.
Only a block's beginning has to be remembered to go on from the middle of it: the block is read
again and shuffled again by the same seed, and its rows that have been used are left out.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, NamedTuple

import fsspec.asyn
import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node

from tilewright.data.order import seed_of
from tilewright.data.rows import RowReader, unusable_data
from tilewright.errors import UserError

BLOCK = 1000  # rows that are shuffled at once
EVEN_ENOUGH = 16  # shards to a part from which on one more or less is of no account


class Place(NamedTuple):
    """Which of the processes that train this is, and how many workers read for each."""

    rank: int = 0
    processes: int = 1
    workers: int = 1

    @property
    def parts(self) -> int:
        return self.processes * self.workers


class StreamedRows(torch.utils.data.IterableDataset):
    """A split that streams by; a row that cannot be used is counted on the one that follows it.

    Args:
        seed: of the order, and of the rows' random numbers. With one the stream has no end: an
            epoch follows on another. Without, it is read once, as it comes.
    """

    def __init__(
        self, data: IterableDataset, read: RowReader, place: Place, seed: int | None = None
    ):
        # A buffer of one row: the library's own shuffling of rows could not be resumed.
        self.data = data if seed is None else data.shuffle(seed, buffer_size=1)
        self.read = read
        self.place = place
        self.seed = seed
        self.start = 0
        self.positions: Mapping[int, Mapping[str, Any]] = {}

    def go_on(self, start: int, positions: Mapping[int, Mapping[str, Any]]) -> None:
        """The next batch is number `start`; each part goes on from its position, if it has one."""
        self.start, self.positions = start, positions

    def __iter__(self) -> Iterator[dict]:
        info = torch.utils.data.get_worker_info()
        worker = 0
        if info is not None:
            fsspec.asyn.reset_lock()  # it may have been held when this process was forked
            worker = (info.id + self.start) % info.num_workers  # whose batch is number `start`
        part = self.place.rank * self.place.workers + worker
        data = share(self.data, part, self.place.parts)
        if self.seed is None:
            yield from self._once(data)
        else:
            yield from self._for_ever(data, part, self.seed)

    def _once(self, data: IterableDataset) -> Iterator[dict]:
        skipped: Counter[str] = Counter()
        found = False
        for block in data.iter(BLOCK):
            for record, caption in zip(block["image"], block["caption"], strict=True):
                row = self.read(record, caption)
                if isinstance(row, str):
                    skipped[row] += 1
                else:
                    yield {**row, "skipped": skipped}
                    skipped, found = Counter(), True
        if skipped and not found and self.place.parts == 1:
            raise unusable_data(skipped)

    def _for_ever(self, data: IterableDataset, part: int, seed: int) -> Iterator[dict]:
        position = self.positions.get(part, {})
        first_epoch, number = position.get("epoch", 0), position.get("block", 0)
        used, state = position.get("used", 0), position.get("state")
        skipped: Counter[str] = Counter()
        for epoch in count(first_epoch):
            data.set_epoch(epoch)
            if state is not None:
                data.load_state_dict(state)
            found = number > 0 or used > 0
            for block in data.iter(BLOCK):
                records, captions = block["image"], block["caption"]
                following = data.state_dict()
                generator = torch.Generator().manual_seed(seed_of(seed, part, epoch, number))
                order = torch.randperm(len(records), generator=generator).tolist()
                for place in range(used, len(order)):
                    chosen = order[place]
                    drawn = (seed, part, epoch, number, place)
                    row = self.read(records[chosen], captions[chosen], seed=drawn)
                    if isinstance(row, str):
                        skipped[row] += 1
                        continue
                    reached = {"part": part, "epoch": epoch, "block": number, "used": place + 1}
                    yield {**row, "skipped": skipped, "position": {**reached, "state": state}}
                    skipped, found = Counter(), True
                number, used, state = number + 1, 0, following
            if not found:
                raise self._nothing(skipped)
            number, used, state = 0, 0, None

    def _nothing(self, skipped: Counter[str]) -> UserError:
        if skipped:
            return unusable_data(skipped)
        return UserError(
            f"the stream has too few rows for its {self.place.parts} parts, one for each process "
            "and each of its workers: lower trainer.devices or data.num_workers"
        )


def share(data: IterableDataset, part: int, parts: int) -> IterableDataset:
    """One of `parts` parts: other rows than any other, and together all of them.

    By shards, so that nothing is read twice, where they can be shared out evenly. Else a part reads
    every shard and keeps its share of the rows.
    """
    if parts == 1:
        return data
    even = data.num_shards % parts == 0 or data.num_shards >= EVEN_ENOUGH * parts
    return split_dataset_by_node(data, part, parts, strategy="shards" if even else "examples")
