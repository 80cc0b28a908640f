"""ParquetSource: forms of images, splits and mistakes."""

import logging
import os

import pytest
from datasets import Dataset, Image

from helpers.numbered_images import (
    assert_load_fails,
    numbered_rows,
    numbers_by_split,
    png,
    write_folder,
)
from tilewright.data.images import UnreadableImage, decode_image
from tilewright.data.sources import ParquetSource


@pytest.mark.parametrize("form", ["bytes", "struct", "path"])
def test_forms_of_images(tmp_path, form):
    rows = numbered_rows(range(30))
    if form == "struct":
        rows = rows.cast_column("image", Image())
    elif form == "path":
        write_folder(tmp_path / "files", range(30), captions=None)
        paths = [f"files/{n}.png" for n in range(30)]
        rows = rows.remove_columns("image").add_column("image", paths)
    rows.to_parquet(tmp_path / "images.parquet")
    numbers = numbers_by_split(ParquetSource(str(tmp_path / "images.parquet")).load())
    assert all(numbers.values())
    assert numbers["train"] | numbers["validation"] == set(range(30))


def test_rows_without_a_path_have_no_image(tmp_path):
    write_folder(tmp_path, range(4), captions=None)
    paths = [*(f"{n}.png" for n in range(4)), None, ""]
    captions = [f"number {n}" for n in range(6)]
    Dataset.from_dict({"image": paths, "caption": captions}).to_parquet(tmp_path / "x.parquet")
    splits = ParquetSource(str(tmp_path)).load()
    encoded = [split.cast_column("image", Image(decode=False)) for split in splits.values()]
    rows = [row for split in encoded for row in split]
    reasons = {row["caption"]: reason(row["image"]) for row in rows}
    assert [reasons[caption] for caption in captions] == [None] * 4 + ["no image"] * 2


def reason(record):
    try:
        decode_image(record)
    except UnreadableImage as error:
        return error.reason


def test_bytes_and_structs_give_the_same_splits(tmp_path):
    rows = numbered_rows(range(50))
    rows.to_parquet(tmp_path / "bytes.parquet")
    rows.cast_column("image", Image()).to_parquet(tmp_path / "struct.parquet")
    from_bytes, from_structs = (
        numbers_by_split(ParquetSource(str(tmp_path / f"{form}.parquet")).load())
        for form in ("bytes", "struct")
    )
    assert from_bytes == from_structs


def test_paths_are_relative_to_the_parquet_file(tmp_path):
    for name, numbers in (("a", [1, 2]), ("b", [3])):
        write_folder(tmp_path / name, numbers, captions=None)
        paths = {"image": [f"{n}.png" for n in numbers]}
        captions = {"caption": [f"number {n}" for n in numbers]}
        Dataset.from_dict(paths | captions).to_parquet(tmp_path / name / "x.parquet")
    numbers = numbers_by_split(ParquetSource(str(tmp_path)).load())
    assert numbers["train"] | numbers["validation"] == {1, 2, 3}


def test_pattern_and_split_names_of_files(tmp_path):
    for name, n in (("train-00000", 1), ("train-00001", 2), ("val-00000", 3), ("test", 4)):
        numbered_rows([n]).to_parquet(tmp_path / f"{name}.parquet")
    expected = {"train": {1, 2}, "validation": {3}, "test": {4}}
    assert numbers_by_split(ParquetSource(str(tmp_path)).load()) == expected
    pattern = str(tmp_path / "[tv]*-*.parquet")
    assert numbers_by_split(ParquetSource(pattern).load()) == {"train": {1, 2}, "validation": {3}}


def test_a_name_with_signs_of_patterns_is_a_name(tmp_path):
    file = tmp_path / "set [2024]" / "a.parquet"
    file.parent.mkdir()
    numbered_rows([1, 2]).to_parquet(file)
    numbers = numbers_by_split(ParquetSource(str(file)).load())
    assert numbers["train"] | numbers["validation"] == {1, 2}


def test_split_names_of_folders(tmp_path):
    for name, n in (("train", 1), ("validation", 2)):
        (tmp_path / name).mkdir()
        numbered_rows([n]).to_parquet(tmp_path / name / "0.parquet")
    numbers = numbers_by_split(ParquetSource(str(tmp_path)).load())
    assert numbers == {"train": {1}, "validation": {2}}


def test_a_replaced_file_is_read_again_and_split_by_its_new_images(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    file, other = tmp_path / "images.parquet", tmp_path / "other.parquet"
    numbered_rows(range(10, 40)).to_parquet(file)
    numbered_rows(range(40, 70)).to_parquet(other)
    before, state = numbers_by_split(ParquetSource(str(file)).load()), file.stat()
    expected = numbers_by_split(ParquetSource(str(other)).load())
    other.replace(file)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))  # as `touch -r` does
    after = numbers_by_split(ParquetSource(str(file)).load())
    assert after == expected != before


def test_mistakes_are_one_line(tmp_path):
    path = str(tmp_path / "x.parquet")
    assert_load_fails(ParquetSource(path), "matches no parquet file", "x.parquet")
    numbered_rows(range(3)).to_parquet(path)
    assert_load_fails(ParquetSource(path, image_column="jpg"), "'jpg'", "image, caption")
    (tmp_path / "x.parquet").write_bytes(b"this is not parquet")
    assert_load_fails(ParquetSource(path), "x.parquet", "cannot be read")


def test_folders_above_the_data_do_not_choose_the_split(tmp_path):
    root = tmp_path / "val" / "images"
    root.mkdir(parents=True)
    for n in range(2):
        numbered_rows(range(20 * n, 20 * n + 20)).to_parquet(root / f"{n}.parquet")
    numbers = numbers_by_split(ParquetSource(str(root)).load())
    assert numbers["train"] | numbers["validation"] == set(range(40))
    assert len(numbers["train"]) > 20


def test_other_columns_may_differ_between_files(tmp_path):
    for n, value in enumerate([1, "x", None]):
        rows = numbered_rows(range(10 * n, 10 * n + 10))
        (rows if value is None else rows.add_column("id", [value] * 10)).to_parquet(
            tmp_path / f"{n}.parquet"
        )
    numbers = numbers_by_split(ParquetSource(str(tmp_path)).load())
    assert numbers["train"] | numbers["validation"] == set(range(30))


def test_a_file_that_differs_is_named(tmp_path):
    numbered_rows(range(10)).to_parquet(tmp_path / "a.parquet")
    numbered_rows(range(9)).rename_column("caption", "text").to_parquet(tmp_path / "b.parquet")
    assert_load_fails(ParquetSource(str(tmp_path)), "b.parquet has no column 'caption'")
    lists = Dataset.from_dict({"image": [png(1)], "caption": [["a", "b"]]})
    lists.to_parquet(tmp_path / "b.parquet")
    assert_load_fails(ParquetSource(str(tmp_path)), "in the same form in all files")
    (tmp_path / "b.parquet").write_bytes(b"")
    assert_load_fails(ParquetSource(str(tmp_path)), "b.parquet cannot be read as a parquet file")


def test_files_without_rows_are_left_out(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    numbered_rows(range(0)).cast(numbered_rows([1]).features).to_parquet(tmp_path / "a.parquet")
    assert_load_fails(ParquetSource(str(tmp_path)), "have no rows")
    numbered_rows(range(9)).to_parquet(tmp_path / "b.parquet")
    numbers = numbers_by_split(ParquetSource(str(tmp_path)).load())
    assert numbers["train"] | numbers["validation"] == set(range(9))
    assert "1 parquet file(s) have no rows" in caplog.text


def test_addresses_of_images_are_kept(tmp_path):
    addresses = [f"https://host/{n}.png" for n in range(9)]
    rows = Dataset.from_dict({"image": [*addresses, None], "caption": ["a"] * 10})
    rows.to_parquet(tmp_path / "a.parquet")
    splits = ParquetSource(str(tmp_path)).load()
    images = [
        row["image"]
        for split in splits.values()
        for row in split.cast_column("image", Image(decode=False))
    ]
    assert sorted(image["path"] for image in images if image["path"]) == addresses
