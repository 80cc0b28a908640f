"""Tiny source of gray images, with an image tokenizer and helpers to read its batches."""

import io
from dataclasses import dataclass
from itertools import islice

import torch
from datasets import Dataset, DatasetDict, Features, Image, IterableDatasetDict, List, Value
from PIL import Image as PILImage

SIZE = 16
FEATURES = Features({"image": Image(), "caption": List(Value("string"))})


def png(level):
    file = io.BytesIO()
    PILImage.new("RGB", (SIZE, SIZE), (level, level, level)).save(file, "PNG")
    return file.getvalue()


class TinySource:
    """Gray images of level 10 i, captioned "plain i" and "gray i".

    Args:
        broken: rows whose image is not a PNG file.
        missing: rows without an image.
    """

    def __init__(self, rows=8, broken=(), missing=(), streaming=False):
        self.rows, self.broken, self.missing, self.streaming = rows, broken, missing, streaming

    def load(self):
        images = [
            {"bytes": b"not an image" if i in self.broken else png(10 * i), "path": None}
            if i not in self.missing
            else None
            for i in range(self.rows)
        ]
        captions = [[f"plain {i}", f"gray {i}"] for i in range(self.rows)]
        rows = Dataset.from_dict({"image": images, "caption": captions}, features=FEATURES)
        if self.streaming:
            rows = rows.cast_column("image", Image(decode=False)).to_iterable_dataset()
            return IterableDatasetDict({"train": rows, "validation": rows})
        return DatasetDict({"train": rows, "validation": rows})


class Levels(torch.nn.Module):
    """Image tokenizer whose token, for each of the 2 x 2 tiles, is the gray level, 0 to 255."""

    image_size, grid, num_tokens = SIZE, 2, 256

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.encoded = 0

    def encode(self, images):
        self.encoded += len(images)
        level = (images[:, 0, 0, 0] * 255).round().long()
        return level[:, None, None].expand(-1, 2, 2)

    def decode(self, tokens):
        raise NotImplementedError


@dataclass(frozen=True)  # its repr must be the same in all processes
class Noise:
    """Transform that returns a random gray level, like an augmentation."""

    def __call__(self, image):
        level = int(torch.randint(256, ()))
        return PILImage.new("RGB", image.size, (level, level, level))


def batches(data, loader, count=None):
    """Returns batches as a training step sees them. Training batches need a `count`."""
    return [data.on_after_batch_transfer(batch, 0) for batch in islice(loader, count)]


def row_indices(batch):
    """Returns the row index of each caption in a batch."""
    return [int(caption.split()[1]) for caption in batch["caption"]]


def flatten(lists):
    return [item for items in lists for item in items]
