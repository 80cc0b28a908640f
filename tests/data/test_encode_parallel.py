"""Encoding of splits with the reasons why images are not encoded."""

from helpers.numbered_images import write_folder
from tilewright.data.encode_parallel import encode_in_parallel
from tilewright.data.skipping import format_counts


def test_unreadable_images_are_counted_by_reason_with_an_example(tmp_path):
    train = tmp_path / "images" / "train"
    write_folder(train, range(4))
    write_folder(tmp_path / "images" / "val", range(4, 6))
    (train / "2.png").write_bytes(b"not an image")
    crop = {"_target_": "tilewright.data.CenterCrop", "size": 16}
    data = {
        "_target_": "tilewright.data.CaptionedImages",
        "source": {"_target_": "tilewright.data.FolderSource", "path": str(tmp_path / "images")},
        "image_size": 16,
        "batch_size": 2,
        "train_transform": crop,
        "eval_transform": crop,
        "image_tokenizer": {"_target_": "helpers.gray.Levels"},
        "cache": str(tmp_path / "image_tokens"),
    }
    config = {"processes": 1, "splits": ["train", "validation"], "data": data, "device": "cpu"}
    encoded = {split: (len(cache), counts) for split, cache, counts in encode_in_parallel(config)}
    assert encoded == {"train": (4, {"not an image": 1}), "validation": (2, {})}
    example = f"1 × not an image (such as {train / '2.png'})"
    assert format_counts(encoded["train"][1]) == example
