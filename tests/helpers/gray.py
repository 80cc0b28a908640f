"""A tiny source of gray pictures, an image tokenizer for them, and what batches of them hold."""

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
    """Gray pictures of level 10 i, captioned "gray i" and "gray i"; `broken` ones are no PNG."""

    def __init__(self, rows=8, broken=(), stream=False):
        self.rows, self.broken, self.stream = rows, broken, stream

    def load(self):
        images = [
            {"bytes": b"no picture" if i in self.broken else png(10 * i), "path": None}
            for i in range(self.rows)
        ]
        captions = [[f"grey {i}", f"gray {i}"] for i in range(self.rows)]
        rows = Dataset.from_dict({"image": images, "caption": captions}, features=FEATURES)
        if self.stream:
            rows = rows.cast_column("image", Image(decode=False)).to_iterable_dataset()
            return IterableDatasetDict({"train": rows, "validation": rows})
        return DatasetDict({"train": rows, "validation": rows})


class Levels(torch.nn.Module):
    """An image tokenizer: a picture's level, 0 to 255, is the token of its 2 x 2 tiles."""

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


@dataclass(frozen=True)  # its name is one in every process
class Noise:
    """A transform that draws at random, as an augmentation does."""

    def __call__(self, image):
        level = int(torch.randint(256, ()))
        return PILImage.new("RGB", image.size, (level, level, level))


def batches(data, loader, count=None):
    """Batches as a training step sees them; those of training have no end."""
    return [data.on_after_batch_transfer(batch, 0) for batch in islice(loader, count)]


def numbers(batch):
    return [int(caption.split()[1]) for caption in batch["caption"]]


def flat(lists):
    return [item for items in lists for item in items]
