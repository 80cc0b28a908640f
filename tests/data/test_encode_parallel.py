"""Encoding of splits with the reasons why images are not encoded."""

import pytest

from helpers.numbered_images import png, write_folder
from tilewright.data.encode_parallel import encode_in_parallel
from tilewright.data.skipping import format_counts


def config(folder, processes):
    crop = {"_target_": "tilewright.data.CenterCrop", "size": 16}
    data = {
        "_target_": "tilewright.data.CaptionedImages",
        "source": {"_target_": "tilewright.data.FolderSource", "path": str(folder / "images")},
        "image_size": 16,
        "batch_size": 2,
        "train_transform": crop,
        "eval_transform": crop,
        "image_tokenizer": {"_target_": "helpers.gray.Levels"},
        "cache": str(folder / "image_tokens"),
    }
    splits = ["train", "validation"]
    return {"processes": processes, "splits": splits, "data": data, "device": "cpu"}


@pytest.fixture
def train(tmp_path):
    write_folder(tmp_path / "images" / "train", range(4))
    write_folder(tmp_path / "images" / "val", range(4, 6))
    return tmp_path / "images" / "train"


def test_unreadable_images_are_counted_by_reason_with_an_example(tmp_path, train):
    (train / "2.png").write_bytes(b"not an image")
    encoded = {
        split: (len(cache), counts)
        for split, cache, counts in encode_in_parallel(config(tmp_path, 1))
    }
    assert encoded == {"train": (4, {"not an image": 1}), "validation": (2, {})}
    example = f"1 × not an image (such as {train / '2.png'})"
    assert format_counts(encoded["train"][1]) == example


@pytest.mark.slow
def test_warnings_come_from_the_first_process_only(tmp_path, train, capfd, caplog):
    (train / "uncaptioned.png").write_bytes(png(6))
    assert len(list(encode_in_parallel(config(tmp_path, 2)))) == 2
    assert "1 of 5 rows of train have no caption" in caplog.text
    assert "have no caption" not in capfd.readouterr().err
