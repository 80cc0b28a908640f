"""Streaming data: shared among readers without losing or repeating a row, and resumed exactly.

There is one reader for each dataloader worker of each process. Each epoch reads the shards in a new
order, several at a time. The rows are shuffled within blocks of `SHUFFLE_BLOCK`.

To resume within such a block, the reader reads the block again from its start. It shuffles the
rows with the same seed and leaves out those that were taken. `streaming_position` divides the rest
of an epoch among another number of readers.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any

import fsspec.asyn
import torch
from datasets import IterableDataset

from tilewright.data.row_reader import RowReader
from tilewright.data.seeding import ROW_ORDER_SEED, derive_seed
from tilewright.data.skipping import no_usable_rows
from tilewright.data.streaming_position import ReaderGroup, StreamingPosition
from tilewright.distributed.collectives import gather_objects
from tilewright.errors import UserError

log = logging.getLogger(__name__)

SHUFFLE_BLOCK = 1000  # rows that are shuffled together
OPEN_SHARDS = 10  # shards that are read in turn
# With this many shards per reader, it does not matter that some readers have one shard more.
MIN_SHARDS_PER_READER = 16


class StreamingDataset(torch.utils.data.IterableDataset):
    """Rows of a split that streams.

    Each row is a batch row with two more entries. `skipped` counts the rows that were skipped since
    the last row, by reason. `position` is the position after the row, in training only.

    Args:
        data: records with `image` (encoded) and `caption`.
        reader: converts records to batch rows.
        group: processes and workers that share the data.
        seed: seed of the order and of the rows. With a seed, the epochs never end. Without a seed,
            the data is read once, in the order of `read_sample`.
    """

    def __init__(
        self, data: IterableDataset, reader: RowReader, group: ReaderGroup, seed: int | None = None
    ):
        self.data = data
        self.reader = reader
        self.group = group
        self.seed = seed
        self.start = 0
        self.positions: Mapping[int, StreamingPosition] = {}

    def resume(self, start: int, positions: Mapping[int, StreamingPosition]) -> None:
        """Continues a training.

        Args:
            start: index of the next batch.
            positions: positions by reader. A reader without one starts at its first row.
        """
        self.start, self.positions = start, positions

    def __iter__(self) -> Iterator[dict]:
        index = self._reader_index()
        start = StreamingPosition.start(index, self.group.readers)
        position = self.positions.get(index, start)
        skipped: Counter[str] = Counter()  # since the last usable row
        while True:
            last: dict | None = None
            for row in self._epoch(position):
                if isinstance(row, str):
                    skipped[row] += 1
                    continue
                if last is not None:
                    yield last
                last, skipped = {**row, "skipped": skipped}, Counter()
            if last is not None:
                # The last row of the epoch also counts the rows that were skipped after it.
                last["skipped"] += skipped
                skipped = Counter()
                if self.seed is not None:
                    last["position"] = position.next_epoch()
                yield last
            elif position.is_full_epoch_start:
                self._check_usable(index, skipped)
            if self.seed is None:
                return
            position = position.next_epoch()

    def _reader_index(self) -> int:
        info = torch.utils.data.get_worker_info()
        if info is None:
            return self.group.reader(0)
        fsspec.asyn.reset_lock()  # another thread may have held it when this process was forked
        # Worker 0 always makes the first batch, so it must continue the reader whose turn it is.
        return self.group.reader((info.id + self.start) % info.num_workers)

    def _epoch(self, position: StreamingPosition) -> Iterator[dict | str]:
        """Yields the rows of one epoch, from a position on."""
        if self.seed is None:
            return self._sampled_epoch(position.reader)
        return self._shuffled_epoch(position, self.seed)

    def _sampled_epoch(self, reader: int) -> Iterator[dict | str]:
        for record in read_sample(self.data, reader, self.group.readers):
            yield self.reader(record["image"], record["caption"])

    def _shuffled_epoch(self, position: StreamingPosition, seed: int) -> Iterator[dict | str]:
        part = position.parts[0]
        if part.shards is not None and part.shards.get("count") != self.data.num_shards:
            before = part.shards.get("count", "an unknown number")  # of an early checkpoint
            log.warning(
                "the data has %d shards instead of %s: reader %d restarts its epoch",
                self.data.num_shards, before, position.reader + 1,
            )  # fmt: skip
            position = position.move(0, 0, None)
            part = position.parts[0]
        reader, epoch = part.reader, part.epoch
        generator = torch.Generator().manual_seed(derive_seed(seed, epoch))  # same for all readers
        shards = torch.randperm(self.data.num_shards, generator=generator).tolist()
        shard_reader = ShardReader(
            self.data, shards, reader, part.readers, OPEN_SHARDS, part.shards
        )
        block, block_start, taken = part.shuffle_block, shard_reader.state_dict(), part.taken
        records = iter(shard_reader)
        while block_records := list(islice(records, SHUFFLE_BLOCK)):
            block_end = shard_reader.state_dict()
            generator = torch.Generator().manual_seed(derive_seed(seed, reader, epoch, block))
            order = torch.randperm(len(block_records), generator=generator).tolist()
            for index in range(taken, len(order)):
                if index % part.every != part.offset:
                    continue  # belongs to another part
                record = block_records[order[index]]
                row_seed = (seed, reader, epoch, block, index)
                row = self.reader(record["image"], record["caption"], seed=row_seed)
                if isinstance(row, dict):
                    row["position"] = position.move(block, index + 1, block_start)
                yield row
            block, taken, block_start = block + 1, 0, block_end

    def _check_usable(self, reader: int, skipped: Counter[str]) -> None:
        """Raises UserError if a reader has no usable row, or the data fewer rows than readers."""
        readers = self.group.readers
        if skipped and readers == 1:
            raise no_usable_rows(skipped)
        if skipped and self.seed is not None:
            error = no_usable_rows(skipped, f"reader {reader + 1} of {readers}")
            raise UserError(f"{error} (each worker of each process is a reader)")
        if self.seed is not None:
            raise UserError(
                f"the streaming data has too few rows for {readers} readers, one for each worker "
                "of each process: lower trainer.devices or data.num_workers"
            )


def equalize_batches(batches: Iterable[dict]) -> Iterator[dict]:
    """Yields equally many batches in each process. All processes must iterate over them.

    A process without further batches repeats a row, which does not count (`rows` is 0).

    Args:
        batches: batches of this process, of which there may be none.

    Raises:
        UserError: no process has a batch.
    """
    padding: dict | None = None
    for batch in chain(batches, repeat(None)):
        if padding is None:  # in all processes, or in none
            rows = gather_objects(None if batch is None else _one_row(batch))
            padding = next((row for row in rows if row is not None), None)
            is_last = False
            if padding is None:
                raise UserError(
                    "no row of the streaming split can be used: fix the data, or raise "
                    "data.source.validation_fraction if it has no row"
                )
        else:
            is_last = all(gather_objects(batch is None))
        if is_last:
            return
        yield batch or dict(padding)


def _one_row(batch: dict) -> dict:
    """Returns a batch of the first row of another one, which does not count."""
    counts = ("rows", "skipped", "truncated")
    row = {key: value[:1] for key, value in batch.items() if key not in counts}
    return {**row, "rows": 0}


def read_sample(data: IterableDataset, reader: int = 0, readers: int = 1) -> Iterator[dict]:
    """Yields the records of one reader, once, in a random order that is always the same.

    The first records are a sample of up to `OPEN_SHARDS` shards, as wide as streaming allows.
    """
    generator = torch.Generator().manual_seed(ROW_ORDER_SEED)
    shards = torch.randperm(data.num_shards, generator=generator).tolist()
    records = iter(ShardReader(data, shards, reader, readers, OPEN_SHARDS))
    while block := list(islice(records, SHUFFLE_BLOCK)):
        for index in torch.randperm(len(block), generator=generator).tolist():
            yield block[index]


@dataclass
class OpenShard:
    """Shard that is being read.

    Attributes:
        position: where a resumed shard continues. None after its first record, because `data` then
            has the position.
    """

    index: int
    data: IterableDataset
    records: Iterator[dict[str, list]]
    position: Any = None


class ShardReader:
    """Records of one reader. Together, the readers read each record once.

    If the shards divide evenly, each reader reads its own shards, so that no data is read twice.
    Otherwise, each reader reads all shards and keeps its share of the records.

    `datasets` can share, shuffle and resume streaming data, but not all three at once: resuming
    loses the rows in its shuffle buffer.

    Args:
        shards: indices of the shards, in the order to read.
        reader: index of the reader.
        readers: number of readers.
        open_shards: number of shards to read in turn.
        state: `state_dict` of the reader to continue from.
    """

    def __init__(
        self,
        data: IterableDataset,
        shards: Sequence[int],
        reader: int,
        readers: int,
        open_shards: int,
        state: Mapping[str, Any] | None = None,
    ):
        self.data = data
        self.count = len(shards)
        even = len(shards) % readers == 0 or len(shards) >= MIN_SHARDS_PER_READER * readers
        self.shards = shards[reader::readers] if even else shards
        self.every, self.offset = (1, 0) if even else (readers, reader)
        self.open_shards = open_shards
        state = state or {"next": 0, "turn": 0, "records": 0, "open": []}
        self._next: int = state["next"]  # position in `shards` of the next one to open
        self._turn: int = state["turn"]  # position in `_open` of the next one to read
        self._records: int = state["records"]  # number of records read, of all readers
        self._open = [self._open_shard(index, position) for index, position in state["open"]]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while self._open or self._next < len(self.shards):
            while len(self._open) < self.open_shards and self._next < len(self.shards):
                self._open.append(self._open_shard(self.shards[self._next]))
                self._next += 1
            self._turn %= len(self._open)
            shard = self._open[self._turn]
            record, shard.position = next(shard.records, None), None
            if record is None:
                del self._open[self._turn]
                continue
            self._turn += 1
            self._records += 1
            if (self._records - 1) % self.every == self.offset:
                yield {name: values[0] for name, values in record.items()}

    def state_dict(self) -> dict[str, Any]:
        """Returns the position as plain values."""
        return {
            "count": self.count,
            "next": self._next,
            "turn": self._turn,
            "records": self._records,
            "open": [
                [shard.index, shard.position or shard.data.state_dict()] for shard in self._open
            ],
        }

    def _open_shard(self, index: int, position: Any = None) -> OpenShard:
        data = self.data.shard(self.data.num_shards, index)
        if position is not None:
            data.load_state_dict(position)
        # `datasets` would split a plain iteration among the workers a second time.
        return OpenShard(index, data, data.iter(1), position)
