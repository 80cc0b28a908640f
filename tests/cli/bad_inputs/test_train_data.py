"""Data that cannot be trained on: one line, and nothing is written."""

import json

import pytest
from datasets import Dataset

from helpers.bad_inputs import (
    FOLDER,
    HUB,
    PARQUET,
    TAR,
    assert_refused,
    png,
    truncate,
    write_images,
    write_metadata,
    write_parquet,
    write_tars,
)

# name: (arguments, a function that makes the input bad, parts of the message)
CASES = {
    "missing folder": ([*FOLDER[:-1], "data.source.path=/no"], None, ["is not a folder", "/no"]),
    "empty folder": (FOLDER, None, ["no images"]),
    "no captions": (
        ["stage=ranker", *FOLDER[1:]],
        lambda h: write_images(h, captions=False),
        ["no row of the split train has a caption", "no caption (such as"],
    ),
    "a single image": (FOLDER, lambda h: write_images(h, 1), ["too few"]),
    "only broken images": (FOLDER, lambda h: write_images(h, broken=True), ["not an image"]),
    "metadata that is not JSON": (FOLDER, lambda h: write_metadata(h, "{oh"), ["line 1"]),
    "metadata without file names": (
        FOLDER,
        lambda h: write_metadata(h, json.dumps({"caption": "a"})),
        ["file_name"],
    ),
    "missing parquet file": (PARQUET, None, ["no parquet file"]),
    "truncated parquet file": (
        PARQUET,
        lambda h: (write_parquet(h, image=[png()], caption=["a"]), truncate(h.files / "a.parquet")),
        ["cannot be read", "a.parquet"],
    ),
    "missing caption column": (
        PARQUET,
        lambda h: write_parquet(h, image=[png()], text=["a"]),
        ["caption_column"],
    ),
    "numbers as captions": (
        PARQUET,
        lambda h: write_parquet(h, image=[png()], caption=[1]),
        ["no text"],
    ),
    "missing data set": (HUB, None, ["cannot be loaded"]),
    "missing split": (
        [*HUB, "data.source.split=dev"],
        lambda h: Dataset.from_dict({"image": [png()], "caption": ["a"]}).save_to_disk(h.files),
        ["dev"],
    ),
    "missing tar file": (TAR, None, ["no tar file"]),
    "file that is not a tar archive": (
        TAR,
        lambda h: (h.files / "a.tar").write_bytes(b"x" * 2000),
        ["a tar file"],
    ),
    "tar archive without captions": (
        TAR,
        lambda h: write_tars(h, "1.jpg", "2.jpg"),
        ["caption_keys"],
    ),
    "fraction above 1": (
        [*FOLDER, "data.source.validation_fraction=2"],
        write_images,
        ["fraction=2"],
    ),
    "filters that remove everything": (
        [*FOLDER, "filter=paper", "data.filters.length.min_words=99", "~data.filters.english"],
        write_images,
        ["keep no row", "short caption"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_writes_nothing(case, home):
    assert_refused(home, "train", *CASES[case])
