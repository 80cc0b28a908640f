"""Fixtures: a data module over `gray.TinySource`, and a text tokenizer for it."""

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
                "cache": tmp_path / "image_tokens",
                **arguments,
            },
        )

    return make


@pytest.fixture
def tokenizer():
    tokenizer = BytePairTokenizer(vocab_size=300, length=12, dropout=0.5)
    tokenizer.train(["plain 1", "gray 2"] * 10)
    return tokenizer
