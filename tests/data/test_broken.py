"""Data of which some is broken in ten ways: trained on, each good pair once an epoch, all counted.

`PAIRS=10000 pytest tests/data/test_broken.py` takes more of it.
"""

import io
import os
from collections import Counter

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    Value,
)
from PIL import Image as PILImage

from tilewright.data import CaptionedImages
from tilewright.data.transforms import CenterCrop

PAIRS = int(os.environ.get("PAIRS", "400"))
BROKEN = PAIRS // 20
SIZE, BATCH = 8, 20
NOISE = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)


def encoded(form, image=None, **options):
    file = io.BytesIO()
    (image or PILImage.fromarray(NOISE)).save(file, form, **options)
    return file.getvalue()


PNG, JPEG, WEBP = encoded("PNG"), encoded("JPEG"), encoded("WEBP")
ALPHA = encoded("PNG", PILImage.new("RGBA", (9, 9), (0, 0, 0, 7)))
GOOD = [
    PNG, JPEG, WEBP, ALPHA,
    encoded("JPEG", PILImage.new("CMYK", (9, 9))),
    encoded("PNG", PILImage.new("P", (9, 9))),
    encoded("PNG", PILImage.fromarray(NOISE[..., 0].astype(np.uint16) * 257)),
    encoded("GIF"),
    encoded("TIFF"),
]  # fmt: skip
BOMB = encoded("PNG", PILImage.new("1", (1000, 1000)))
PICTURES = [  # what is wrong with a picture, and the kind that it is counted as
    (None, "no picture"),
    (b"", "no picture"),
    (b"<html>404</html>", "not a picture"),
    (JPEG[: len(JPEG) // 2], "picture is cut short"),
    (PNG[: len(PNG) // 2], "picture is cut short"),
    (PNG[:60] + bytes(500) + PNG[560:], "picture is broken"),
    (BOMB, "picture has too many pixels"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
]
CAPTIONS = [("  ", "empty caption"), ({"a": 1}, "caption is no text")]
WAYS = [(data, "", kind) for data, kind in PICTURES] + [(PNG, c, kind) for c, kind in CAPTIONS]


def record(number):
    """Pair `number`, of which each twentieth is broken in one of the ways."""
    picture, caption = GOOD[number % len(GOOD)], f"pair {number}"
    if number % 20 == 7:
        picture, wrong, _ = WAYS[number // 20 % len(WAYS)]
        caption = wrong or caption
    image = None if picture is None else {"bytes": picture, "path": None}
    return {"image": image, "caption": caption}


def records(shards):
    for shard in shards:
        yield from map(record, range(shard, PAIRS, 4))


class Pairs:
    def __init__(self, stream):
        self.stream = stream

    def load(self):
        if self.stream:
            rows = IterableDataset.from_generator(records, gen_kwargs={"shards": list(range(4))})
            return IterableDatasetDict({"train": rows, "validation": rows})
        features = Features({"image": Image(decode=False), "caption": Value("string")})
        # A table has text in all rows of a column: what is none came as nothing.
        pairs = [{**one, "caption": text(one["caption"])} for one in map(record, range(PAIRS))]
        rows = Dataset.from_list(pairs, features=features)
        return DatasetDict({"train": rows, "validation": rows})


def text(caption):
    return caption if isinstance(caption, str) else None


class Reader(pl.LightningModule):
    """Notes which pairs it is trained on."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def training_step(self, batch, batch_idx):
        assert batch["image"].shape[1:] == (3, SIZE, SIZE)
        self.seen += batch["caption"]
        return (self.weight * batch["image"].mean()).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize(("stream", "workers"), [(False, 0), (True, 0), (False, 2), (True, 2)])
def test_good_pairs_are_seen_once_and_broken_ones_counted_by_kind(stream, workers, caplog):
    crop = CenterCrop(SIZE)
    data = CaptionedImages(
        Pairs(stream), SIZE, BATCH, crop, crop, max_pixels=500_000, num_workers=workers
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=(PAIRS - stream * BROKEN) // BATCH,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    model = Reader()
    trainer.fit(model, data)

    good = Counter(f"pair {n}" for n in range(PAIRS) if n % 20 != 7)
    assert Counter(model.seen) == good
    kinds = Counter(WAYS[n // 20 % len(WAYS)][2] for n in range(7, PAIRS, 20))
    if not stream:
        kinds["no caption"] += kinds.pop("caption is no text")
    found = data.skips.kinds
    assert found == kinds
    assert data.skips.read == PAIRS
    assert f"{found.total():,} of {data.skips.read:,} rows were skipped: " in caplog.text
