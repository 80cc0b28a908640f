"""Conversion of a record to a batch row, and of batch rows to a batch."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from tilewright.data.filters import Filter, check_image_size, usable_captions
from tilewright.data.images import MAX_PIXELS, decode_image, to_bytes, to_floats
from tilewright.data.seeding import temporary_seed
from tilewright.data.skipping import SkipReason, SkipRow
from tilewright.data.text_tokenizer import TextTokenizer
from tilewright.data.token_cache import unreadable_reason

Transform = Callable[[Image.Image], Image.Image]


class RowReader:
    """Converts a record to a batch row, or returns the reason for skipping it.

    A row's caption, crop and segmentation depend on its seed only. So every process returns the
    same row.

    Args:
        transform: PIL image to a PIL image of the final size. A method `for_captions`, if it has
            one, returns the transform of an image with these captions.
        tokenizer: text tokenizer, or None for rows without text tokens.
        training: choose one of several captions at random, and use BPE dropout. Otherwise, use the
            first caption without dropout.
        filters: filters of captions and images.
        max_pixels: larger images are skipped.
        require_captions: skip rows without a caption. If false, their caption is "".
    """

    def __init__(
        self,
        transform: Transform,
        tokenizer: TextTokenizer | None,
        training: bool,
        filters: Sequence[Filter] = (),
        max_pixels: int = MAX_PIXELS,
        require_captions: bool = True,
    ):
        self.transform = transform
        self.tokenizer = tokenizer
        self.training = training
        self.filters = filters
        self.max_pixels = max_pixels
        self.require_captions = require_captions

    def __call__(
        self,
        image: Any,
        caption: Any,
        tokens: Any | None = None,
        seed: tuple[int, ...] | None = None,
    ) -> dict | SkipReason:
        """Converts a record to a batch row.

        Args:
            image: encoded image. Ignored if there are tokens.
            caption: a caption or a list of captions.
            tokens: image tokens [h, w] from the token cache.
            seed: seed of the row's random numbers.

        Returns:
            A dictionary with `caption`, and either `image_tokens` or `pixels` (bytes, [H, W, 3]).
            With a tokenizer, also `text` and `truncated`. If the row cannot be used, the reason.
        """
        try:
            if seed is None:
                return self._row(image, caption, tokens)
            with temporary_seed(*seed):
                return self._row(image, caption, tokens)
        except SkipRow as skip:
            return SkipReason(skip.reason, image_path(image))

    def read_image(self, image: Any, captions: Sequence[str] = ()) -> Tensor:
        """Decodes and transforms an encoded image to floats in [0, 1], [3, H, W].

        Args:
            captions: captions of the image, for transforms that depend on them.

        Raises:
            SkipRow: the image cannot be read, or a filter drops it.
        """
        return to_floats(self._pixels(image, captions))

    def _pixels(self, image: Any, captions: Sequence[str]) -> Tensor:
        decoded = decode_image(image, self.max_pixels)
        check_image_size(*decoded.size, self.filters)
        for_captions = getattr(self.transform, "for_captions", None)
        transform = for_captions(captions) if for_captions else self.transform
        return to_bytes(transform(decoded))

    def _row(self, image: Any, caption: Any, tokens: Any | None) -> dict:
        captions = usable_captions(caption, self.filters, self.require_captions)
        choose = self.training and len(captions) > 1
        chosen = captions[int(torch.randint(len(captions), ())) if choose else 0]
        row: dict[str, Any] = {"caption": chosen}
        if self.tokenizer is not None:
            truncated_before = self.tokenizer.truncated
            row["text"] = self.tokenizer.encode([chosen], dropout=self.training)[0]
            row["truncated"] = self.tokenizer.truncated > truncated_before
        if tokens is None:
            row["pixels"] = self._pixels(image, captions)
            return row
        if reason := unreadable_reason(tokens):
            raise SkipRow(reason)
        row["image_tokens"] = torch.from_numpy(tokens.astype("int64"))
        return row


def image_path(image: Any) -> str:
    """Returns the path in an encoded image, or "" if it has none."""
    path = image.get("path") if isinstance(image, Mapping) else None
    return path or ""


def collate(rows: list[dict | str]) -> dict[str, Any]:
    """Stacks the usable rows of a batch, and counts the skipped ones by reason as `skipped`.

    `rows` is the number of usable rows without the padding. Pixels become floats here, for all rows
    at once. A batch of streaming data has the `position` of its last row. A batch with truncated
    captions lists them as `truncated`.
    """
    usable = [row for row in rows if isinstance(row, dict)]
    skipped = Counter(row for row in rows if isinstance(row, str))
    padding = [row.pop("is_padding", False) for row in usable]
    position = None
    for row in usable:
        skipped.update(row.pop("skipped", {}))
        position = row.pop("position", None)
    batch: dict[str, Any] = {"skipped": dict(skipped), "rows": padding.count(False)}
    # Counted here, because a worker's counts do not reach the training process.
    if truncated := [row["caption"] for row in usable if row.pop("truncated", False)]:
        batch["truncated"] = truncated
    if position is not None:
        batch["position"] = position
    if "features" in usable[0]:  # captions have different numbers of tokens
        features = [row.pop("features") for row in usable]
        batch["features"] = nn.utils.rnn.pad_sequence(features, batch_first=True)
    for key in usable[0]:
        values = [row[key] for row in usable]
        batch[key] = torch.stack(values) if isinstance(values[0], Tensor) else values
    if "pixels" in batch:
        batch["image"] = to_floats(batch.pop("pixels"))
    return batch
