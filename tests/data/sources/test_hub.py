"""HubSource: splits, columns, streaming and mistakes."""

import base64
import json
from zipfile import ZipFile

import pytest
from datasets import Dataset, DatasetDict, Image, List, Value

from helpers.numbered_images import assert_load_fails, numbered_rows, numbers_by_split, png
from tilewright.data.images import decode_image
from tilewright.data.sources import HubSource, ParquetSource


def test_splits_of_the_dataset_are_used_and_columns_are_renamed(tmp_path):
    names = {"image": "image", "caption": "text"}
    parts = {"train": [1, 2], "dev": [3], "test": [4]}
    saved = DatasetDict(
        {name: numbered_rows(n).rename_columns(names).add_column("id", n)
         for name, n in parts.items()}
    )  # fmt: skip
    saved.save_to_disk(str(tmp_path / "set"))
    source = HubSource(str(tmp_path / "set"), image_column="image", caption_column="text")
    assert numbers_by_split(source.load()) == {"train": {1, 2}, "validation": {3}, "test": {4}}


def test_columns_may_have_swapped_names(tmp_path):
    swapped = numbered_rows(range(9)).rename_columns({"image": "caption", "caption": "image"})
    swapped.save_to_disk(str(tmp_path / "set"))
    source = HubSource(str(tmp_path / "set"), image_column="caption", caption_column="image")
    assert set.union(*numbers_by_split(source.load()).values()) == set(range(9))


def test_split_by_name_and_by_mapping(tmp_path):
    parts = {"a": range(0, 40), "b": range(40, 50), "c": range(50, 60)}
    DatasetDict({k: numbered_rows(v) for k, v in parts.items()}).save_to_disk(tmp_path / "set")
    path = str(tmp_path / "set")
    single = numbers_by_split(HubSource(path, split="a").load())
    assert single["train"] | single["validation"] == set(range(40))
    both = numbers_by_split(HubSource(path, split={"train": "b", "validation": "c"}).load())
    assert both == {"train": set(range(40, 50)), "validation": set(range(50, 60))}
    assert_load_fails(HubSource(path), "no training split", "a, b, c", "split=")
    assert_load_fails(HubSource(path, split="d"), "'d'", "a, b, c")


def test_slice_of_a_split(tmp_path):
    numbered_rows(range(100)).to_parquet(tmp_path / "train.parquet")
    numbers = numbers_by_split(HubSource(str(tmp_path), split="train[:30]").load())
    assert numbers["train"] | numbers["validation"] == set(range(30))


@pytest.mark.parametrize("count", [3, 150, 400])
def test_streaming_gives_the_splits_of_the_table(tmp_path, count):
    numbered_rows(range(count)).to_parquet(tmp_path / "train.parquet")
    table = numbers_by_split(HubSource(str(tmp_path)).load())
    assert numbers_by_split(HubSource(str(tmp_path), streaming=True).load()) == table
    assert all(table.values())


@pytest.mark.parametrize("streaming", [False, True])
def test_inserted_rows_do_not_move_others(tmp_path, streaming):
    sides = []
    for numbers in (range(100, 300), range(400)):
        folder = tmp_path / str(len(numbers))
        folder.mkdir()
        numbered_rows(numbers).to_parquet(folder / "train.parquet")
        sides.append(numbers_by_split(HubSource(str(folder), streaming=streaming).load()))
    assert sides[0]["train"] <= sides[1]["train"]
    assert sides[0]["validation"] <= sides[1]["validation"]


def test_identical_images_are_in_the_same_split(tmp_path):
    rows = Dataset.from_dict(
        {"image": [png(n % 20) for n in range(100)], "caption": [str(n) for n in range(100)]}
    )
    rows.save_to_disk(str(tmp_path / "set"))
    splits = HubSource(str(tmp_path / "set"), validation_fraction=0.3).load()
    sides = [{row["image"].getpixel((0, 0)) for row in split} for split in splits.values()]
    assert all(sides)
    assert not set.intersection(*sides)


def test_lists_of_captions_are_kept(tmp_path):
    rows = Dataset.from_dict({"image": [png(1), png(2)], "caption": [["a", "b"], ["c"]]})
    rows.save_to_disk(str(tmp_path / "set"))
    splits = HubSource(str(tmp_path / "set")).load()
    assert splits["train"].features["caption"] == List(Value("string"))


def test_unknown_column_is_an_error(tmp_path):
    numbered_rows(range(3)).save_to_disk(str(tmp_path / "set"))
    path = str(tmp_path / "set")
    assert_load_fails(
        HubSource(path, caption_column="text"), "'text'", "image, caption", "caption_column"
    )
    assert_load_fails(HubSource(path, image_column="jpg"), "'jpg'", "image_column")


def test_column_of_another_type_is_an_error(tmp_path):
    rows = numbered_rows(range(3)).add_column("id", [1, 2, 3])
    rows.save_to_disk(str(tmp_path / "set"))
    path = str(tmp_path / "set")
    assert_load_fails(HubSource(path, caption_column="id"), "no text in column 'id'", "int64")
    assert_load_fails(HubSource(path, image_column="id"), "no images in column 'id'")


@pytest.mark.parametrize("streaming", [False, True])
def test_images_in_base64_are_an_error(tmp_path, streaming):
    images = [base64.b64encode(png(n)).decode() for n in range(3)]
    rows = Dataset.from_dict({"image": images, "caption": ["x"] * 3})
    rows.to_parquet(tmp_path / "train.parquet")
    for source in (
        HubSource(str(tmp_path), streaming=streaming),
        ParquetSource(str(tmp_path)),
    ):
        assert_load_fails(source, "base64", "'image'", "'iVBORw0KGgo")


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["image", "jpg"])
def test_broken_images_are_loaded(tmp_path, column, streaming):
    images = [png(n) for n in range(5)] + [b"this is not an image"]
    rows = Dataset.from_dict({column: images, "caption": ["x"] * 6})
    rows.cast_column(column, Image()).to_parquet(tmp_path / "train.parquet")
    source = HubSource(str(tmp_path), image_column=column, streaming=streaming)
    splits = source.load()
    encoded = [split.cast_column("image", Image(decode=False)) for split in splits.values()]
    assert sum(1 for split in encoded for _ in split) == 6


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("nothing", [None, "", []])
def test_rows_without_a_caption_are_kept(tmp_path, nothing, streaming):
    some = ["x"] if nothing == [] else "x"
    images = [png(n) for n in range(5)] + [b"this is not an image"]
    rows = Dataset.from_dict({"image": images, "caption": [some, nothing] + [some] * 4})
    rows = rows.cast_column("image", Image())
    rows.to_parquet(tmp_path / "train.parquet")
    splits = HubSource(str(tmp_path), streaming=streaming).load()
    encoded = [split.cast_column("image", Image(decode=False)) for split in splits.values()]
    captions = [row["caption"] for split in encoded for row in split]
    captions.remove(nothing)
    assert captions == [some] * 5


def test_unknown_dataset_without_a_network_is_an_error(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_load_fails(HubSource("nobody/nothing"), "'nobody/nothing'", "network")


def test_folder_without_data_is_an_error(tmp_path):
    assert_load_fails(HubSource(str(tmp_path)), "cannot be loaded", str(tmp_path))


@pytest.mark.parametrize("streaming", [False, True])
def test_files_with_other_columns_are_an_error(tmp_path, streaming):
    numbered_rows(range(9)).to_parquet(tmp_path / "a.parquet")
    numbered_rows(range(9)).rename_column("caption", "text").to_parquet(tmp_path / "b.parquet")
    assert_load_fails(HubSource(str(tmp_path), streaming=streaming), "cannot be loaded")


@pytest.mark.parametrize("streaming", [False, True])
def test_images_in_a_zip_archive_are_read_and_copies_are_in_one_split(tmp_path, streaming):
    with ZipFile(tmp_path / "train.zip", "w") as archive:
        for number in range(60):
            archive.writestr(f"{number}.png", png(number % 30))  # two copies of each image
        rows = [{"file_name": f"{n}.png", "caption": f"number {n % 30}"} for n in range(60)]
        archive.writestr("metadata.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    source = HubSource(str(tmp_path), streaming=streaming, validation_fraction=0.3)
    numbers = {}
    for split, rows in source.load().items():
        records = list(rows.cast_column("image", Image(decode=False)))
        numbers[split] = {int(record["caption"].removeprefix("number ")) for record in records}
        assert len(records) == 2 * len(numbers[split])
        for record in records:
            red = int(record["caption"].removeprefix("number "))
            assert decode_image(record["image"]).getpixel((0, 0)) == (red, 0, 7)
    assert numbers["train"] | numbers["validation"] == set(range(30))
    assert not numbers["train"] & numbers["validation"]
