"""From a split's records to the rows of a batch."""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from PIL import Image
from torch import Tensor

from tilewright.data.codes import UNREADABLE
from tilewright.data.images import UnreadableImage, decode, to_tensor
from tilewright.data.order import Draw, seed_of
from tilewright.data.tokenizer import BytePairTokenizer
from tilewright.errors import UserError

Transform = Callable[[Image.Image], Image.Image]


def first_caption(caption: str | Sequence[str]) -> str:
    """The caption that evaluation uses, of one or several."""
    return caption if isinstance(caption, str) else caption[0]


def random_caption(caption: str | Sequence[str]) -> str:
    """The caption that training uses, of one or several."""
    if isinstance(caption, str):
        return caption
    return caption[int(torch.randint(len(caption), ()))]


def read_image(record: Any, transform: Transform) -> Tensor | None:
    """An encoded picture to [3, H, W] in [0, 1]; None where it cannot be read."""
    try:
        return to_tensor(transform(decode(record)))
    except UnreadableImage:
        return None


class RowReader:
    """Makes a batch's row of a record; one whose picture cannot be read becomes None.

    In training all that is random about a row (its caption, its crop, the spelling of its words)
    follows from the seed that it is drawn with, whichever process reads it.
    """

    def __init__(self, transform: Transform, tokenizer: BytePairTokenizer | None, training: bool):
        self.transform = transform
        self.tokenizer = tokenizer
        self.training = training

    def __call__(
        self,
        record: Any,
        caption: str | Sequence[str],
        tokens: Any | None = None,
        seed: tuple[int, ...] | None = None,
    ) -> dict | None:
        """The row of an encoded picture `record`, or of ready image tokens [h, w]."""
        if seed is None:
            return self._row(record, caption, tokens)
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed every device as well, which takes longer than the rest.
            torch.default_generator.manual_seed(seed_of(*seed))
            return self._row(record, caption, tokens)

    def _row(self, record: Any, caption: str | Sequence[str], tokens: Any | None) -> dict | None:
        chosen = random_caption(caption) if self.training else first_caption(caption)
        row: dict[str, Any] = {"caption": chosen}
        if self.tokenizer is not None:
            row["text_tokens"] = self.tokenizer.encode([chosen], dropout=self.training)[0]
        if tokens is not None:
            row["image_tokens"] = torch.from_numpy(tokens.astype("int64"))
            return row if tokens.flat[0] != UNREADABLE else None
        row["image"] = read_image(record, self.transform)
        return row if row["image"] is not None else None


class Rows(torch.utils.data.Dataset):
    """A split with random access. With `tokens` [rows, h, w] no picture is opened."""

    def __init__(self, data: Dataset, read: RowReader, tokens: Any | None = None):
        self.data = data if tokens is None else data.select_columns("caption")
        self.read = read
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, item: int | Draw) -> dict | None:
        return self._read([item])[0]

    def __getitems__(self, items: list[int | Draw]) -> list[dict | None]:
        rows = self._read(items)
        if all(row is None for row in rows):  # a batch needs one row: the next that can be read
            rows.append(self._next_readable(items[-1]))
        return rows

    def _read(self, items: Sequence[int | Draw]) -> list[dict | None]:
        draws = [item if isinstance(item, Draw) else Draw(item, None) for item in items]
        columns = self.data[[draw.row for draw in draws]]
        pictures = columns.get("image", [None] * len(draws))
        return [
            self.read(
                picture,
                caption,
                None if self.tokens is None else self.tokens[draw.row],
                draw.seed,
            )
            for draw, picture, caption in zip(draws, pictures, columns["caption"], strict=True)
        ]

    def _next_readable(self, item: int | Draw) -> dict:
        draw = item if isinstance(item, Draw) else Draw(item, None)
        for step in range(1, len(self)):
            row = self[draw._replace(row=(draw.row + step) % len(self))]
            if row is not None:
                return row
        raise UserError("none of the data's pictures can be read")


class StreamedRows(torch.utils.data.IterableDataset):
    """A split that streams by; a row that cannot be read is counted on the one that follows it.

    Args:
        seed: what the rows' random numbers follow from, beside their place in the stream. With one
            the stream has no end: an epoch follows on another, each in an order of its own.
    """

    def __init__(self, data: IterableDataset, read: RowReader, seed: tuple[int, ...] | None = None):
        self.data = data
        self.read = read
        self.seed = seed

    def __iter__(self) -> Iterator[dict]:
        if self.seed is None:
            yield from self._epoch(None)
            return
        info = torch.utils.data.get_worker_info()
        for epoch in count():
            self.data.set_epoch(epoch)
            yield from self._epoch((*self.seed, epoch, info.id if info else 0))

    def _epoch(self, seed: tuple[int, ...] | None) -> Iterator[dict]:
        skipped, found = 0, False
        for place, record in enumerate(self.data):
            drawn = None if seed is None else (*seed, place)
            row = self.read(record["image"], record["caption"], seed=drawn)
            if row is None:
                skipped += 1
            else:
                yield {**row, "skipped": skipped}
                skipped, found = 0, True
        if not found and (skipped or seed is not None):  # an epoch of nothing would go on for ever
            raise UserError("none of the data's pictures can be read")


def collate(rows: list[dict | None]) -> dict[str, Any]:
    """Stacks the readable rows of a batch and counts the others as `skipped`."""
    readable = [row for row in rows if row is not None]
    skipped = len(rows) - len(readable) + sum(row.pop("skipped", 0) for row in readable)
    batch: dict[str, Any] = {"skipped": skipped}
    for key in readable[0]:
        values = [row[key] for row in readable]
        batch[key] = torch.stack(values) if isinstance(values[0], Tensor) else values
    return batch
