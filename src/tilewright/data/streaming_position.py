"""Positions in streaming data, for exact resuming.

Each dataloader worker of each process is one reader, and each reader has its own position.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

log = logging.getLogger(__name__)


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


@dataclass
class StreamingPosition:
    """Position of one reader, right after a row.

    Rows are shuffled within blocks. The position is the state at the start of a block and the
    number of rows taken from it.

    Attributes:
        reader: index of the reader.
        epoch: index of the epoch.
        shuffle_block: index of the shuffle block within the epoch.
        taken: number of rows taken from the shuffle block, including skipped ones.
        shards: state of the `ShardReader` at the start of the shuffle block. None is the start of
            an epoch.
    """

    reader: int
    epoch: int = 0
    shuffle_block: int = 0
    taken: int = 0
    shards: dict[str, Any] | None = None

    @property
    def is_epoch_start(self) -> bool:
        return self.shuffle_block == 0 and self.taken == 0

    def next_epoch(self) -> "StreamingPosition":
        """Returns the start of the next epoch."""
        return StreamingPosition(self.reader, self.epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position as plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "StreamingPosition":
        """Restores a position from its `state_dict`."""
        return cls(**state)


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
        gathered = gather(states, group.processes)
        return {
            "readers": group.readers,
            "positions": {reader: state for part in gathered for reader, state in part.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], group: ReaderGroup) -> None:
        """Restores the positions. With another number of readers, the next epoch starts."""
        self.positions = {
            reader: StreamingPosition.from_state(position)
            for reader, position in state["positions"].items()
        }
        if self.positions and state["readers"] != group.readers:
            epoch = 1 + max(position.epoch for position in self.positions.values())
            log.warning(
                "The streaming data had %d readers and now has %d: the training continues with "
                "the next epoch",
                state["readers"],
                group.readers,
            )
            self.positions = {
                reader: StreamingPosition(reader, epoch) for reader in range(group.readers)
            }


def gather(value: Any, processes: int) -> list[Any]:
    """Returns the value of each process. All processes must call it."""
    values = [value] * processes
    if processes > 1:
        torch.distributed.all_gather_object(values, value)
    return values
