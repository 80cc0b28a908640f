"""Positions in streaming data, for exact resuming.

Each dataloader worker of each process is one reader, and each reader has its own position.

A training that resumes with another number of readers first finishes the epoch of the previous
readers. The rows that they had not read are divided among the new readers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from tilewright.distributed.collectives import gather_objects

# With this many shares per reader, it does not matter that some readers have one share more.
MIN_SHARES_PER_READER = 8


class ReaderGroup(NamedTuple):
    """Processes that share streaming data, as seen from one of them.

    Attributes:
        rank: rank of this process.
        processes: number of processes.
        workers: number of readers of each process, at least 1.
    """

    rank: int = 0
    processes: int = 1
    workers: int = 1

    @property
    def readers(self) -> int:
        """Number of readers of all processes."""
        return self.processes * self.workers

    def reader(self, worker: int) -> int:
        """Returns the index of a worker of this process among all readers."""
        return self.rank * self.workers + worker


@dataclass(frozen=True)
class Part:
    """Position in the rows of one of several readers.

    The rows are shuffled within blocks. The position is the state at the start of a block and the
    number of rows taken from it.

    Attributes:
        reader: index of the reader whose rows these are.
        readers: number of readers that the rows of an epoch are divided among.
        every, offset: the rows at `offset`, `offset + every`, ... of a block belong to the part.
        epoch: index of the epoch.
        last_epoch: the part ends with this epoch. None is endless.
        shuffle_block: index of the shuffle block within the epoch.
        taken: number of rows of the shuffle block before the position, including skipped ones.
        shards: state of the `ShardReader` at the start of the shuffle block. None is the start of
            an epoch before its first row.
    """

    reader: int
    readers: int
    every: int = 1
    offset: int = 0
    epoch: int = 0
    last_epoch: int | None = None
    shuffle_block: int = 0
    taken: int = 0
    shards: dict[str, Any] | None = None

    def next_epoch(self) -> "Part | None":
        """Returns the start of the next epoch, or None after the last epoch."""
        if self.epoch == self.last_epoch:
            return None
        return replace(self, epoch=self.epoch + 1, shuffle_block=0, taken=0, shards=None)

    def divide(self, count: int) -> list["Part"]:
        """Divides the rest of the rows into `count` parts."""
        return [
            replace(self, every=self.every * count, offset=self.offset + self.every * i)
            for i in range(count)
        ]


class StreamingPosition:
    """Position of one reader, right after a row.

    It is not a dataclass, because Lightning copies each dataclass of a batch.

    Args:
        reader: index of the reader.
        parts: parts that remain to be read, in order. The last part is endless.
    """

    def __init__(self, reader: int, parts: tuple[Part, ...]):
        self.reader, self.parts = reader, parts

    @classmethod
    def start(cls, reader: int, readers: int) -> "StreamingPosition":
        """Returns the position of a reader at the start of a training."""
        return cls(reader, (Part(reader, readers),))

    @property
    def is_full_epoch_start(self) -> bool:
        """True at the start of an epoch of all rows of this reader."""
        first = self.parts[0]
        return first.last_epoch is None and first.shuffle_block == first.taken == 0

    def move(self, shuffle_block: int, taken: int, shards: dict | None) -> "StreamingPosition":
        """Returns another position in the epoch of the first part."""
        first, *later = self.parts
        moved = replace(first, shuffle_block=shuffle_block, taken=taken, shards=shards)
        return StreamingPosition(self.reader, (moved, *later))

    def next_epoch(self) -> "StreamingPosition":
        """Returns the start of the next epoch of the first part, or of the next part."""
        first, *later = self.parts
        following = first.next_epoch()
        parts = later if following is None else [following, *later]
        return StreamingPosition(self.reader, tuple(parts))

    def state_dict(self) -> dict[str, Any]:
        """Returns the position as plain values, for a checkpoint."""
        return {"reader": self.reader, "parts": [asdict(part) for part in self.parts]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "StreamingPosition":
        """Restores a position from its `state_dict`."""
        return cls(state["reader"], tuple(Part(**part) for part in state["parts"]))


def redistribute(positions: Sequence[StreamingPosition], readers: int) -> list[StreamingPosition]:
    """Returns the positions of another number of readers, which continue the previous ones.

    They finish the epoch of the reader that is furthest ahead. They then share each new epoch.

    Args:
        positions: positions of all previous readers.
        readers: new number of readers.
    """
    own = [position.parts[-1] for position in positions]
    unfinished = [part for position in positions for part in position.parts[:-1]]
    last_epoch = max(part.epoch for part in own)
    own = [replace(part, last_epoch=last_epoch) for part in own]
    # Unfinished parts of an earlier change come first, because their epoch is the oldest. They may
    # have unequal lengths, so all readers share each of them.
    shares = _divide(unfinished, readers, readers) + _divide(
        own, readers // math.gcd(len(own), readers), readers
    )
    assigned = [shares[reader::readers] for reader in range(readers)]
    return [
        StreamingPosition(reader, (*rest, Part(reader, readers, epoch=last_epoch + 1)))
        for reader, rest in enumerate(assigned)
    ]


def _divide(parts: Sequence[Part], shares: int, readers: int) -> list[Part]:
    """Divides each part into `shares`, or into fewer if that gives enough for all readers."""
    enough = math.ceil(MIN_SHARES_PER_READER * readers / max(len(parts), 1))
    return [share for part in parts for share in part.divide(min(shares, enough))]


class StreamingProgress:
    """Positions of the readers of this process in the training data."""

    def __init__(self) -> None:
        self.positions: dict[int, StreamingPosition] = {}

    def update(self, position: StreamingPosition) -> None:
        """Records the position of the reader that made the last batch."""
        self.positions[position.reader] = position

    def state_dict(self, group: ReaderGroup) -> dict[str, Any]:
        """Returns the positions of all readers. All processes must call it."""
        states = {reader: position.state_dict() for reader, position in self.positions.items()}
        parts = gather_objects(states)
        return {
            "readers": group.readers,
            "positions": {reader: state for part in parts for reader, state in part.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], group: ReaderGroup) -> None:
        """Restores the positions of this process's readers."""
        if not state["positions"]:  # the data does not stream
            return
        saved = state["positions"]
        positions = [
            StreamingPosition.from_state(saved[reader])
            if reader in saved
            else StreamingPosition.start(reader, state["readers"])
            for reader in range(state["readers"])
        ]
        if state["readers"] != group.readers:
            positions = redistribute(positions, group.readers)
        # The positions of other processes would be stale at the next checkpoint.
        own = map(group.reader, range(group.workers))
        self.positions = {reader: positions[reader] for reader in own}
