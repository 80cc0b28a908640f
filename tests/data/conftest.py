"""Batches of `gray.TinySource`, made as a test asks for them."""

import pytest

from helpers.gray import SIZE, TinySource
from tilewright.data import BytePairTokenizer, CaptionedImages
from tilewright.data.transforms import CenterCrop


@pytest.fixture
def make(tmp_path):
    def make(source=None, **arguments):
        return CaptionedImages(
            source or TinySource(),
            **{
                "image_size": SIZE,
                "batch_size": 4,
                "train_transform": CenterCrop(SIZE),
                "eval_transform": CenterCrop(SIZE),
                "cache": tmp_path / "codes",
                **arguments,
            },
        )

    return make


@pytest.fixture
def tokenizer():
    made = BytePairTokenizer(vocab_size=300, length=12, dropout=0.5)
    made.train(["grey 1", "gray 2"] * 10)
    return made
