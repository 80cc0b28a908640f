"""Dataset with random access over a split that is a table."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset

from tilewright.data.batches import SeededIndex
from tilewright.data.feature_cache import FeatureCache
from tilewright.data.row_reader import RowReader, image_path
from tilewright.data.seeding import derive_seed
from tilewright.data.skipping import SkipReason, no_usable_rows
from tilewright.data.token_cache import TokenCache


class TableDataset(torch.utils.data.Dataset):
    """Rows of a split with random access.

    Args:
        table: columns `image` (encoded) and `caption`.
        reader: converts records to batch rows.
        caches: image tokens of all rows. With them, no image is opened. There is one cache for each
            augmented crop, and a row uses the next one in each epoch.
        features: features of all captions, for the entry `features` of a row.
    """

    def __init__(
        self,
        table: Dataset,
        reader: RowReader,
        caches: Sequence[TokenCache] = (),
        features: FeatureCache | None = None,
    ):
        self.images = table.select_columns("image")
        self.table = table.select_columns("caption") if caches else table
        self.reader = reader
        self.caches = caches
        self.features = features

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int | SeededIndex) -> dict | str:
        return self._read([index])[0]

    def __getitems__(self, indices: list[int | SeededIndex]) -> list[dict | str]:
        rows = self._read(indices) if indices else []
        if all(isinstance(row, str) for row in rows):  # a batch needs at least one usable row
            following = self._next_usable(indices[-1] if indices else -1)
            rows.append({**following, "is_padding": True})
        return rows

    def _read(self, indices: Sequence[int | SeededIndex]) -> list[dict | str]:
        seeded = [_with_seed(index) for index in indices]
        columns = self.table[[item.row for item in seeded]]
        images = columns.get("image", [None] * len(seeded))
        rows = [
            self.reader(image, caption, self._tokens(item), item.seed)
            for item, image, caption in zip(seeded, images, columns["caption"], strict=True)
        ]
        if self.features is not None:
            for row in rows:
                if isinstance(row, dict):
                    row["features"] = self.features[row["text"]]
        return [
            SkipReason(row, image_path(self.images[item.row]["image"]))
            if self.caches and isinstance(row, SkipReason)
            else row
            for item, row in zip(seeded, rows, strict=True)
        ]

    def _tokens(self, item: SeededIndex) -> Any | None:
        if not self.caches:
            return None
        if item.seed is None or len(self.caches) == 1:
            return self.caches[0][item.row]
        seed, epoch, row = item.seed
        return self.caches[(derive_seed(seed, row) + epoch) % len(self.caches)][row]

    def _next_usable(self, index: int | SeededIndex) -> dict:
        item = _with_seed(index)
        reasons: Counter[str] = Counter()
        for distance in range(1, len(self) + 1):
            following = (item.row + distance) % len(self)
            row = self[SeededIndex(following, item.seed and (*item.seed[:2], following))]
            if not isinstance(row, str):
                return row
            reasons[row] += 1
        raise no_usable_rows(reasons)


def _with_seed(index: int | SeededIndex) -> SeededIndex:
    return index if isinstance(index, SeededIndex) else SeededIndex(index, None)
