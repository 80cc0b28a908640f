"""From a split's records to the rows of a batch."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from torch import Tensor

from tilewright.data.filters import Filter, captions_of, check_picture
from tilewright.data.images import MAX_PIXELS, decode, to_bytes, to_floats
from tilewright.data.order import Draw, drawn_from, seed_of
from tilewright.data.skipped import Unusable, listed
from tilewright.data.token_cache import Codes, kind_of
from tilewright.data.tokenizer import BytePairTokenizer
from tilewright.errors import UserError

Transform = Callable[[Image.Image], Image.Image]


class RowReader:
    """Makes a batch's row of a record; of one that cannot be used, what is wrong with it.

    In training all that is random about a row (its caption, its crop, the spelling of its words)
    follows from the seed that it is drawn with, whichever process reads it.

    Args:
        training: any of several captions, spelled in any way; else the first, spelled in one.
        filters: which captions and pictures are to be used.
        max_pixels: a picture of more is not to be used.
    """

    def __init__(
        self,
        transform: Transform,
        tokenizer: BytePairTokenizer | None,
        training: bool,
        filters: Sequence[Filter] = (),
        max_pixels: int = MAX_PIXELS,
    ):
        self.transform = transform
        self.tokenizer = tokenizer
        self.training = training
        self.filters = filters
        self.max_pixels = max_pixels

    def __call__(
        self,
        record: Any,
        caption: Any,
        tokens: Any | None = None,
        seed: tuple[int, ...] | None = None,
    ) -> dict | str:
        """The row of an encoded picture `record`, as bytes, or of ready image tokens [h, w]."""
        try:
            if seed is None:
                return self._row(record, caption, tokens)
            with drawn_from(*seed):
                return self._row(record, caption, tokens)
        except Unusable as unusable:
            return unusable.kind

    def image(self, record: Any) -> Tensor:
        """An encoded picture to [3, H, W] in [0, 1].

        Raises:
            Unusable: it cannot be read, or is filtered out.
        """
        return to_floats(self._pixels(record))

    def _pixels(self, record: Any) -> Tensor:
        picture = decode(record, self.max_pixels)
        check_picture(*picture.size, self.filters)
        return to_bytes(self.transform(picture))

    def _row(self, record: Any, caption: Any, tokens: Any | None) -> dict:
        captions = captions_of(caption, self.filters)
        several = self.training and len(captions) > 1
        chosen = captions[int(torch.randint(len(captions), ())) if several else 0]
        row: dict[str, Any] = {"caption": chosen}
        if self.tokenizer is not None:
            row["text_tokens"] = self.tokenizer.encode([chosen], dropout=self.training)[0]
        if tokens is None:
            row["pixels"] = self._pixels(record)
            return row
        if kind := kind_of(tokens):
            raise Unusable(kind)
        row["image_tokens"] = torch.from_numpy(tokens.astype("int64"))
        return row


class Rows(torch.utils.data.Dataset):
    """A split with random access.

    Args:
        views: image tokens of all rows, and then no picture is opened; of several such encodings,
            each of other crops, a row's is another one in each epoch.
    """

    def __init__(self, data: Dataset, read: RowReader, views: Sequence[Codes] = ()):
        self.data = data.select_columns("caption") if views else data
        self.read = read
        self.views = views

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, item: int | Draw) -> dict | str:
        return self._read([item])[0]

    def __getitems__(self, items: list[int | Draw]) -> list[dict | str]:
        rows = self._read(items)
        if all(isinstance(row, str) for row in rows):  # a batch needs one: the next that will do
            rows.append(self._next_usable(items[-1]))
        return rows

    def _read(self, items: Sequence[int | Draw]) -> list[dict | str]:
        draws = [item if isinstance(item, Draw) else Draw(item, None) for item in items]
        columns = self.data[[draw.row for draw in draws]]
        pictures = columns.get("image", [None] * len(draws))
        return [
            self.read(picture, caption, self._tokens(draw), draw.seed)
            for draw, picture, caption in zip(draws, pictures, columns["caption"], strict=True)
        ]

    def _tokens(self, draw: Draw) -> Any | None:
        if not self.views:
            return None
        if draw.seed is None or len(self.views) == 1:
            return self.views[0][draw.row]
        seed, epoch, row = draw.seed
        return self.views[(seed_of(seed, row) + epoch) % len(self.views)][row]

    def _next_usable(self, item: int | Draw) -> dict:
        draw = item if isinstance(item, Draw) else Draw(item, None)
        wrong: Counter[str] = Counter()
        for step in range(1, len(self) + 1):
            row = self[draw._replace(row=(draw.row + step) % len(self))]
            if not isinstance(row, str):
                return row
            wrong[row] += 1
        raise unusable_data(wrong)


def unusable_data(wrong: Counter[str]) -> UserError:
    """What is said where no row can be used."""
    return UserError(f"none of the data's rows can be used: {listed(wrong)}")


def collate(rows: list[dict | str]) -> dict[str, Any]:
    """Stacks the usable rows of a batch and counts the others, by kind, as `skipped`.

    Pixels become floats here, all at once. Of a stream's rows, the last one's `position` is the
    batch's.
    """
    usable = [row for row in rows if isinstance(row, dict)]
    skipped = Counter(row for row in rows if isinstance(row, str))
    position = None
    for row in usable:
        skipped.update(row.pop("skipped", {}))
        position = row.pop("position", None)
    batch: dict[str, Any] = {"skipped": dict(skipped)}
    if position is not None:
        batch["position"] = position
    for key in usable[0]:
        values = [row[key] for row in usable]
        batch[key] = torch.stack(values) if isinstance(values[0], Tensor) else values
    if "pixels" in batch:
        batch["image"] = to_floats(batch.pop("pixels"))
    return batch
