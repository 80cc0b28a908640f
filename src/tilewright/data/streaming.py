"""Data that streams by: shared out without a row lost or read twice, shuffled, and resumed exactly.

The stream is divided into parts, one for each process that trains and each of its workers. A part's
shards come in another order in each epoch, several at a time, and its rows are shuffled in blocks.
Only a block's beginning has to be remembered to go on from the middle of it: the block is read
again and shuffled again by the same seed, and its rows that have been used are left out.
"""

from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any, NamedTuple

import fsspec.asyn
import torch
from datasets import IterableDataset

from tilewright.data.order import seed_of
from tilewright.data.rows import RowReader, unusable_data
from tilewright.errors import UserError

BLOCK = 1000  # rows that are shuffled at once
OPEN = 10  # shards that are read by turns
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
    """A split that streams by; a row that cannot be used is counted on one beside it.

    Args:
        seed: of the order, and of the rows' random numbers. With one the stream has no end: an
            epoch follows on another. Without, it is read once, as it comes.
    """

    def __init__(
        self, data: IterableDataset, read: RowReader, place: Place, seed: int | None = None
    ):
        self.data = data
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
        if self.seed is None:
            yield from self._once(part)
        else:
            yield from self._for_ever(part, self.seed)

    def _once(self, part: int) -> Iterator[dict]:
        records = Part(self.data, range(self.data.num_shards), part, self.place.parts, 1)
        rows = (self.read(record["image"], record["caption"]) for record in records)
        found, skipped = yield from _counted(rows)
        if skipped and not found and self.place.parts == 1:
            raise unusable_data(skipped)

    def _for_ever(self, part: int, seed: int) -> Iterator[dict]:
        position = self.positions.get(part, {})
        found = position.get("block", 0) > 0 or position.get("used", 0) > 0
        skipped: Counter[str] = Counter()
        for epoch in count(position.get("epoch", 0)):
            end = {"part": part, "epoch": epoch + 1, "block": 0, "used": 0, "state": None}
            rows = self._epoch(part, seed, epoch, position)
            more, skipped = yield from _counted(rows, skipped, {"position": end})
            if not (found or more):
                raise self._nothing(skipped)
            position, found = {}, False

    def _epoch(
        self, part: int, seed: int, epoch: int, position: Mapping[str, Any]
    ) -> Iterator[dict | str]:
        """A part's rows in one epoch, each with its position, from a position in it on."""
        number, used = position.get("block", 0), position.get("used", 0)
        state = position.get("state")
        generator = torch.Generator().manual_seed(seed_of(seed, epoch))  # for all parts alike
        shards = torch.randperm(self.data.num_shards, generator=generator).tolist()
        records = Part(self.data, shards, part, self.place.parts, OPEN, state)
        rows = iter(records)
        while block := list(islice(rows, BLOCK)):
            following = records.state_dict()
            generator = torch.Generator().manual_seed(seed_of(seed, part, epoch, number))
            order = torch.randperm(len(block), generator=generator).tolist()
            for place in range(used, len(order)):
                record = block[order[place]]
                drawn = (seed, part, epoch, number, place)
                row = self.read(record["image"], record["caption"], seed=drawn)
                reached = {"part": part, "epoch": epoch, "block": number, "used": place + 1}
                if isinstance(row, dict):
                    row["position"] = {**reached, "state": state}
                yield row
            number, used, state = number + 1, 0, following

    def _nothing(self, skipped: Counter[str]) -> UserError:
        if skipped:
            return unusable_data(skipped)
        return UserError(
            f"the stream has too few rows for its {self.place.parts} parts, one for each process "
            "and each of its workers: lower trainer.devices or data.num_workers"
        )


def _counted(
    rows: Iterator[dict | str],
    skipped: Mapping[str, int] | None = None,
    end: Mapping[str, Any] | None = None,
) -> Generator[dict, None, tuple[bool, Counter[str]]]:
    """Usable rows, each with the kinds of those skipped before it; the last, of those after it too.

    Args:
        skipped: kinds that no row has been given yet.
        end: what else the last row gets, which is read when all after it have been looked at.

    Returns:
        Whether there was a row, and the kinds that none has been given.
    """
    last = None
    waiting = Counter(skipped or {})
    for row in rows:
        if isinstance(row, str):
            waiting[row] += 1
            continue
        if last is not None:
            yield last
        last, waiting = {**row, "skipped": waiting}, Counter()
    if last is None:
        return False, waiting
    yield {**last, **(end or {}), "skipped": last["skipped"] + waiting}
    return True, Counter()


class Part:
    """The records of one of `parts` parts: others than those of any other part, together all.

    By shards, so that nothing is read twice, where they can be shared out evenly. Else a part reads
    every shard and keeps its share of the records.

    `datasets` can share out, shuffle and resume a stream by itself, but not all at once: it loses
    what its shuffling buffer holds.

    Args:
        shards: the order in which they are read, `at_once` of them by turns.
        state: what `state_dict` gave where the records are to go on.
    """

    def __init__(
        self,
        data: IterableDataset,
        shards: Sequence[int],
        part: int,
        parts: int,
        at_once: int,
        state: Mapping[str, Any] | None = None,
    ):
        self.data = data
        even = len(shards) % parts == 0 or len(shards) >= EVEN_ENOUGH * parts
        self.shards = shards[part::parts] if even else shards
        self.every, self.offset = (1, 0) if even else (parts, part)
        self.at_once = at_once
        state = state or {"next": 0, "turn": 0, "record": 0, "open": []}
        self._next, self._turn, self._record = state["next"], state["turn"], state["record"]
        self._open = [self._opened(shard, at) for shard, at in state["open"]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while self._open or self._next < len(self.shards):
            while len(self._open) < self.at_once and self._next < len(self.shards):
                self._open.append(self._opened(self.shards[self._next]))
                self._next += 1
            self._turn %= len(self._open)
            _, _, records = self._open[self._turn]
            record = next(records, None)
            if record is None:
                del self._open[self._turn]
                continue
            self._turn += 1
            self._record += 1
            if (self._record - 1) % self.every == self.offset:
                yield {name: value[0] for name, value in record.items()}

    def state_dict(self) -> dict[str, Any]:
        places = [[shard, data.state_dict()] for shard, data, _ in self._open]
        return {"next": self._next, "turn": self._turn, "record": self._record, "open": places}

    def _opened(
        self, shard: int, state: Any = None
    ) -> tuple[int, IterableDataset, Iterator[dict[str, list]]]:
        data = self.data.shard(self.data.num_shards, shard)
        if state is not None:
            data.load_state_dict(state)
        # One by one, and not as a plain iteration does it, which a worker would share out again.
        return shard, data, data.iter(1)
