"""From a split's records to the rows of a batch."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from PIL import Image
from torch import Tensor

from tilewright.data.codes import UNREADABLE
from tilewright.data.images import UnreadableImage, decode, to_tensor
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
    """Makes batch rows of a split's records; a row whose picture cannot be read becomes None."""

    def __init__(self, transform: Transform, tokenizer: BytePairTokenizer | None, training: bool):
        self.transform = transform
        self.tokenizer = tokenizer
        self.training = training

    def __call__(
        self, records: Any, captions: Sequence[Any], tokens: Any | None = None
    ) -> list[dict | None]:
        """Rows of encoded pictures `records`, or of ready image tokens [B, h, w]."""
        choose = random_caption if self.training else first_caption
        chosen = [choose(caption) for caption in captions]
        rows: list[dict | None] = [{"caption": caption} for caption in chosen]
        if self.tokenizer is not None:
            text = self.tokenizer.encode(chosen, dropout=self.training)
            for row, text_tokens in zip(rows, text, strict=True):
                assert row is not None
                row["text_tokens"] = text_tokens
        for i, row in enumerate(rows):
            assert row is not None
            if tokens is not None:
                row["image_tokens"] = torch.from_numpy(tokens[i].astype("int64"))
                readable = tokens[i].flat[0] != UNREADABLE
            else:
                row["image"] = read_image(records[i], self.transform)
                readable = row["image"] is not None
            if not readable:
                rows[i] = None
        return rows


class Rows(torch.utils.data.Dataset):
    """A split with random access. With `tokens` [rows, h, w] no picture is opened."""

    def __init__(self, data: Dataset, read: RowReader, tokens: Any | None = None):
        self.data = data if tokens is None else data.select_columns("caption")
        self.read = read
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict | None:
        return self._read([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict | None]:
        rows = self._read(indices)
        if all(row is None for row in rows):  # a batch needs one row: the next that can be read
            rows.append(self._next_readable(indices[-1]))
        return rows

    def _read(self, indices: list[int]) -> list[dict | None]:
        columns = self.data[indices]
        tokens = None if self.tokens is None else self.tokens[indices]
        return self.read(columns.get("image"), columns["caption"], tokens)

    def _next_readable(self, index: int) -> dict:
        for step in range(1, len(self)):
            row = self[(index + step) % len(self)]
            if row is not None:
                return row
        raise UserError("none of the data's pictures can be read")


class StreamedRows(torch.utils.data.IterableDataset):
    """A split that streams by; a row that cannot be read is counted on the one that follows it."""

    def __init__(self, data: IterableDataset, read: RowReader):
        self.data = data
        self.read = read

    def __iter__(self) -> Iterator[dict]:
        skipped, found = 0, False
        for record in self.data:
            row = self.read([record["image"]], [record["caption"]])[0]
            if row is None:
                skipped += 1
            else:
                yield {**row, "skipped": skipped}
                skipped, found = 0, True
        if skipped and not found:  # an epoch without a batch would follow on another for ever
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
