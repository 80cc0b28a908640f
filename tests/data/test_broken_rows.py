"""Training on data with broken pairs: each good pair is seen once per epoch, all are counted.

`PAIRS=10000 pytest tests/data/test_broken_rows.py` uses more pairs.
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
SIZE = 8
NOISE = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)


def encode(form, image=None, **options):
    file = io.BytesIO()
    (image or PILImage.fromarray(NOISE)).save(file, form, **options)
    return file.getvalue()


PNG, JPEG, WEBP = encode("PNG"), encode("JPEG"), encode("WEBP")
ALPHA = encode("PNG", PILImage.new("RGBA", (9, 9), (0, 0, 0, 7)))
GOOD = [
    PNG, JPEG, WEBP, ALPHA,
    encode("JPEG", PILImage.new("CMYK", (9, 9))),
    encode("PNG", PILImage.new("P", (9, 9))),
    encode("PNG", PILImage.fromarray(NOISE[..., 0].astype(np.uint16) * 257)),
    encode("GIF"),
    encode("TIFF"),
]  # fmt: skip
BOMB = encode("PNG", PILImage.new("1", (1000, 1000)))
BROKEN_IMAGES = [  # bytes of a broken image, and the reason that is counted
    (None, "no image"),
    (b"", "no image"),
    (b"<html>404</html>", "not an image"),
    (JPEG[: len(JPEG) // 2], "image is truncated"),
    (PNG[: len(PNG) // 2], "image is truncated"),
    (PNG[:60] + bytes(500) + PNG[560:], "image is corrupt"),
    (BOMB, "image has too many pixels"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
]
BROKEN_CAPTIONS = [("  ", "empty caption"), ({"a": 1}, "caption is not text")]
CASES = [(data, "", reason) for data, reason in BROKEN_IMAGES] + [
    (PNG, caption, reason) for caption, reason in BROKEN_CAPTIONS
]


def record(number):
    """Returns a pair. One in twenty is broken."""
    image, caption = GOOD[number % len(GOOD)], f"pair {number}"
    if number % 20 == 7:
        image, broken_caption, _ = CASES[number // 20 % len(CASES)]
        caption = broken_caption or caption
    encoded = None if image is None else {"bytes": image, "path": None}
    return {"image": encoded, "caption": caption}


def records(shards):
    for shard in shards:
        yield from map(record, range(shard, PAIRS, 4))


class Pairs:
    def __init__(self, streaming):
        self.streaming = streaming

    def load(self):
        if self.streaming:
            rows = IterableDataset.from_generator(records, gen_kwargs={"shards": list(range(4))})
            return IterableDatasetDict({"train": rows, "validation": rows})
        features = Features({"image": Image(decode=False), "caption": Value("string")})
        # A column of a table can only hold text, so other captions become None.
        pairs = [{**pair, "caption": text(pair["caption"])} for pair in map(record, range(PAIRS))]
        rows = Dataset.from_list(pairs, features=features)
        return DatasetDict({"train": rows, "validation": rows})


def text(caption):
    return caption if isinstance(caption, str) else None


class CaptionRecorder(pl.LightningModule):
    """Module that records the captions it is trained on."""

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


@pytest.mark.parametrize(("streaming", "workers"), [(False, 0), (True, 0), (False, 2), (True, 2)])
def test_good_pairs_are_seen_once_and_broken_ones_are_counted(streaming, workers, caplog):
    reasons = Counter(CASES[n // 20 % len(CASES)][2] for n in range(7, PAIRS, 20))
    pairs = PAIRS
    if not streaming:  # rows of a table without a caption are left out when it is loaded
        pairs -= sum(reasons.pop(reason) for _, reason in BROKEN_CAPTIONS)
    rows = PAIRS - BROKEN if streaming else pairs  # of the batches of an epoch
    batch_size = next(size for size in (20, 18) if rows % size == 0)
    crop = CenterCrop(SIZE)
    data = CaptionedImages(
        Pairs(streaming), SIZE, batch_size, crop, crop, max_pixels=500_000, num_workers=workers
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=rows // batch_size,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    model = CaptionRecorder()
    trainer.fit(model, data)

    good = Counter(f"pair {n}" for n in range(PAIRS) if n % 20 != 7)
    assert Counter(model.seen) == good
    if not streaming:
        assert f"{PAIRS - pairs} of {PAIRS} rows of train have no caption" in caplog.text
    counts = data.skip_counts
    assert counts.reasons == reasons
    assert counts.read == pairs
    assert f"{counts.total:,} of {counts.read:,} rows read were skipped " in caplog.text
