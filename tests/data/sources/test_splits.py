"""Division of a dataset into train and validation."""

import numpy as np
import pytest
from datasets import Dataset

from helpers.numbered_images import assert_load_fails, numbered_rows, png, write_folder
from tilewright.data.sources import FolderSource
from tilewright.data.sources.splits import (
    group_by_split,
    hash_position,
    hold_out_validation,
    image_identity,
    is_held_out,
    moved_position,
    resolve_splits,
)
from tilewright.errors import UserError


def test_hash_position_is_fixed():
    # Another value would move the images of all users to other splits.
    assert hash_position(0, "a.png") == hash_position(0, b"a.png") == 0.1609277282376098
    assert hash_position(1, "a.png") != hash_position(0, "a.png")


def test_hash_positions_are_uniform():
    positions = [hash_position(3, str(n)) for n in range(4000)]
    assert min(positions) >= 0
    assert max(positions) < 1
    shares, _ = np.histogram(positions, bins=10)
    assert abs(shares - 400).max() < 100


@pytest.mark.parametrize("positions", [[0.5, 0.9], [0.01, 0.02], [0.3, 0.3, 0.4], [0.0, 0.04]])
def test_one_image_moves_if_a_split_would_be_empty(positions):
    moved = moved_position(positions, 0.05, "set")
    assert moved in positions
    assert {is_held_out(position, 0.05, moved) for position in positions} == {True, False}


def test_no_image_moves_if_no_split_is_empty():
    assert moved_position([n / 100 for n in range(100)], 0.055, "set") is None


def test_a_hold_out_needs_two_different_images():
    with pytest.raises(UserError, match=r"^set has 1 different"):
        moved_position([0.3, 0.3], 0.05, "set")


@pytest.mark.parametrize("form", ["table", "streaming"])
@pytest.mark.parametrize(
    ("captioned", "moved"),
    [([-1, -2, -3], -3), ([0, 1], 1), ([0, -1], None), ([-1], None), ([], None)],
)
def test_captions_move_one_image_at_most(form, captioned, moved):
    order = sorted(range(60), key=lambda n: hash_position(0, png(n)))
    captions = {order[rank]: "a caption" for rank in captioned}
    numbers = [*range(60), *order[-3:]]  # the last ones are copies
    rows = Dataset.from_dict(
        {
            "image": [png(n) for n in numbers],
            "caption": [captions.get(n) for n in numbers],
            "number": numbers,
        }
    )
    rows = rows.to_iterable_dataset() if form == "streaming" else rows
    splits = hold_out_validation(rows, 0.1, 0, "set")
    train, validation = ({row["number"] for row in split} for split in splits)
    expected = {n for n in order if hash_position(0, png(n)) < 0.1}
    expected ^= set() if moved is None else {order[moved]}
    assert validation == expected
    assert train == {*order} - expected


def test_splits_that_are_not_used_are_counted(caplog):
    numbers = {"train": [1, 2], "validation": [], "val": [3], "restval": [4, 5, 6], "test": [7]}
    splits = {name: numbered_rows(n or [0]).select(range(len(n))) for name, n in numbers.items()}
    resolved = resolve_splits(splits, hold_out, "set", "hint")
    assert {name: len(rows) for name, rows in resolved.items()} == {
        "train": 2, "validation": 1, "test": 1,
    }  # fmt: skip
    assert "splits of set that are not used: 'validation' (0 rows), 'restval' (3" in caplog.text


def test_a_dataset_without_rows_is_an_error():
    with pytest.raises(UserError, match="set has no rows"):
        resolve_splits({"train": numbered_rows([0]).select([])}, hold_out, "set", "hint")


def hold_out(rows):
    raise AssertionError("there is a split for validation")


@pytest.mark.parametrize("fraction", [0, 1, -1, 5])
def test_fraction_must_be_between_0_and_1(fraction, tmp_path):
    source = FolderSource(write_folder(tmp_path, range(3)), validation_fraction=fraction)
    assert_load_fails(source, str(fraction))


@pytest.mark.parametrize(
    ("paths", "splits"),
    [
        (["/home/dev/a.tar", "/home/dev/b.tar"], ["train"]),
        (["/home/dev/val/a.tar"], ["train"]),
        (["/home/dev/val.tar"], ["validation"]),
        (["/home/test/train/a", "/home/test/val/a"], ["train", "validation"]),
        (["/home/test/x/a", "/home/test/x/y/val-a"], ["train", "validation"]),
        (["https://test.host/dev/0.tar", "https://test.host/dev/1.tar"], ["train"]),
        (["hf://a/train/0.tar", "hf://a/test/0.tar"], ["train", "test"]),
        (["/data/latest/a", "/data/contest/a"], ["train"]),
    ],
)
def test_only_names_below_the_common_folder_determine_the_split(paths, splits):
    assert list(group_by_split(paths, "data")) == splits


@pytest.mark.parametrize(
    "address",
    [
        "hf://datasets/user/name{}/train/1.png",
        "hf://datasets/name{}/1@2x.png",
        "zip://1.png::hf://datasets/user/name{}/a.zip",
    ],
)
def test_a_revision_of_the_hub_does_not_change_the_identity_of_an_image(address):
    without, first, second = (
        image_identity({"bytes": None, "path": address.format(revision)})
        for revision in ("", "@0a1b2c", "@refs%2Fconvert%2Fparquet")
    )
    assert without == first == second == address.format("").encode()
