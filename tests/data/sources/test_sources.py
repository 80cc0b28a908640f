"""Captioned pictures from folders, the Hub's library and parquet, and how they are split."""

import json
from io import BytesIO

import numpy as np
import PIL.Image
import pytest
from datasets import Dataset, DatasetDict, Image, List, Value

from tilewright.data.images import decode
from tilewright.data.sources import HubSource, ParquetSource
from tilewright.data.sources.folder import FolderSource
from tilewright.data.splits import cut, position
from tilewright.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def png(number):
    buffer = BytesIO()
    PIL.Image.new("RGB", (4, 4), (number % 256, number // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def picture_rows(numbers):
    return Dataset.from_dict(
        {"image": [png(n) for n in numbers], "caption": [f"number {n}" for n in numbers]}
    )


def write_folder(root, numbers, captions="jsonl"):
    root.mkdir(parents=True, exist_ok=True)
    for n in numbers:
        (root / f"{n}.png").write_bytes(png(n))
    rows = [{"file_name": f"{n}.png", "caption": f"number {n}"} for n in numbers]
    if captions == "jsonl":
        (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif captions == "csv":
        lines = [f"{row['file_name']},{row['caption']}" for row in rows]
        (root / "metadata.csv").write_text("\n".join(["file_name,text", *lines]))
    elif captions == "txt":
        for n in numbers:
            (root / f"{n}.txt").write_text(f"number {n}\n")
    return str(root)


def by_split(splits):
    """{split: set of the numbers in its captions}, having seen that each is with its picture."""
    numbers = {}
    for name, split in splits.items():
        assert split.column_names == ["image", "caption"]
        assert isinstance(split.features["image"], Image)
        rows = list(split.cast_column("image", Image(decode=False)))
        for row in rows:
            n = int(row["caption"].removeprefix("number "))
            assert decode(row["image"]).getpixel((0, 0)) == (n % 256, n // 256, 7)
        numbers[name] = {int(row["caption"].removeprefix("number ")) for row in rows}
        assert len(numbers[name]) == len(rows)
    return numbers


def fails_in_one_line(source, *words):
    with pytest.raises(UserError) as error:
        source.load()
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


class TestSplits:
    def test_position_is_a_fixed_number(self):
        # These would move every picture of every user to another side, so they do not change.
        assert position(0, "a.png") == position(0, b"a.png") == 0.1609277282376098
        assert position(1, "a.png") != position(0, "a.png")

    def test_positions_are_uniform(self):
        positions = [position(3, str(n)) for n in range(4000)]
        assert min(positions) >= 0
        assert max(positions) < 1
        shares, _ = np.histogram(positions, bins=10)
        assert abs(shares - 400).max() < 100

    @pytest.mark.parametrize("positions", [[0.5, 0.9], [0.01, 0.02], [0.3, 0.3, 0.4], [0.0, 0.9]])
    def test_cut_leaves_no_side_empty(self, positions):
        limit = cut(positions, 0.05, "set")
        assert min(positions) < limit <= max(positions)

    def test_cut_is_the_fraction_where_that_will_do(self):
        assert cut([n / 100 for n in range(100)], 0.055, "set") == 0.055

    def test_cut_needs_two_pictures(self):
        with pytest.raises(UserError, match=r"^set has 1 different"):
            cut([0.3, 0.3], 0.05, "set")

    @pytest.mark.parametrize("fraction", [0, 1, -1, 5])
    def test_fraction_is_a_share(self, fraction, tmp_path):
        source = FolderSource(write_folder(tmp_path, range(3)), validation_fraction=fraction)
        fails_in_one_line(source, str(fraction))


class TestFolder:
    @pytest.mark.parametrize("captions", ["jsonl", "csv", "txt"])
    def test_each_way_to_caption(self, tmp_path, captions):
        numbers = by_split(FolderSource(write_folder(tmp_path, range(60), captions)).load())
        assert set(numbers) == {"train", "validation"}
        assert numbers["train"] | numbers["validation"] == set(range(60))
        assert not numbers["train"] & numbers["validation"]
        assert 1 <= len(numbers["validation"]) < 12

    def test_same_split_again_wherever_the_folder_lies_and_another_with_another_seed(
        self, tmp_path
    ):
        one, two = (write_folder(tmp_path / name, range(60)) for name in ("one", "two"))
        expected = by_split(FolderSource(one, validation_fraction=0.3).load())
        assert by_split(FolderSource(two, validation_fraction=0.3).load()) == expected
        assert by_split(FolderSource(one, validation_fraction=0.3, seed=1).load()) != expected

    def test_added_pictures_move_none(self, tmp_path):
        few, many = (
            by_split(FolderSource(write_folder(tmp_path, n), validation_fraction=0.2).load())
            for n in (range(50, 100), range(200))
        )
        assert few["validation"] <= many["validation"]
        assert few["train"] <= many["train"]

    @pytest.mark.parametrize("count", [2, 3, 5])
    def test_tiny_folder_has_both_splits(self, tmp_path, count):
        numbers = by_split(FolderSource(write_folder(tmp_path, range(count))).load())
        assert all(numbers.values())

    def test_folders_are_splits(self, tmp_path):
        for name, numbers in (("train", [1, 2]), ("val", [3]), ("test", [4])):
            write_folder(tmp_path / name, numbers)
        numbers = by_split(FolderSource(str(tmp_path)).load())
        assert numbers == {"train": {1, 2}, "validation": {3}, "test": {4}}

    def test_folders_are_splits_with_one_metadata_file(self, tmp_path):
        for name, n in (("train", 1), ("validation", 2)):
            write_folder(tmp_path / name, [n], captions=None)
        rows = [("train/1.png", "number 1"), ("validation/2.png", "number 2")]
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
        numbers = by_split(FolderSource(str(tmp_path)).load())
        assert numbers == {"train": {1}, "validation": {2}}

    def test_test_folder_serves_as_validation(self, tmp_path):
        for name, n in (("train", 1), ("test", 2)):
            write_folder(tmp_path / name, [n])
        numbers = by_split(FolderSource(str(tmp_path)).load())
        assert numbers == {"train": {1}, "validation": {2}}

    def test_other_folders_are_all_for_training(self, tmp_path):
        write_folder(tmp_path / "cats", range(5), "txt")
        write_folder(tmp_path / "dogs" / "big", range(5, 10), "txt")
        numbers = by_split(FolderSource(str(tmp_path)).load())
        assert numbers["train"] | numbers["validation"] == set(range(10))

    def test_several_lines_are_several_captions(self, tmp_path):
        write_folder(tmp_path, range(4), "txt")
        (tmp_path / "2.txt").write_text("a two\n\n  the number two  \n")
        splits = FolderSource(str(tmp_path)).load()
        rows = [row for split in splits.values() for row in split]
        assert ["a two", "the number two"] in [row["caption"] for row in rows]
        assert all(split.features["caption"] == List(Value("string")) for split in splits.values())

    def test_rows_of_one_picture_are_its_captions(self, tmp_path):
        write_folder(tmp_path, range(2))
        with (tmp_path / "metadata.jsonl").open("a") as file:
            file.write(json.dumps({"file_name": "1.png", "caption": "one more"}))
        captions = [row["caption"] for split in FolderSource(str(tmp_path)).load().values()
                    for row in split]  # fmt: skip
        assert sorted(captions) == [["number 0"], ["number 1", "one more"]]

    def test_named_caption_column(self, tmp_path):
        write_folder(tmp_path, range(3), captions=None)
        (tmp_path / "metadata.csv").write_text(
            "file_name,caption,said\n" + "\n".join(f"{n}.png,no,number {n}" for n in range(3))
        )
        numbers = by_split(FolderSource(str(tmp_path), caption_column="said").load())
        assert numbers["train"] | numbers["validation"] == {0, 1, 2}
        fails_in_one_line(
            FolderSource(str(tmp_path), caption_column="lost"),
            "metadata.csv", "'lost'", "file_name, caption, said", "caption_column",
        )  # fmt: skip

    def test_uncaptioned_pictures_are_counted_in_one_warning(self, tmp_path, caplog):
        write_folder(tmp_path, range(10))
        for n in range(10, 13):
            (tmp_path / f"{n}.png").write_bytes(png(n))
        (tmp_path / "12.txt").write_text(" \n")
        splits = FolderSource(str(tmp_path)).load()
        assert sum(map(len, splits.values())) == 10
        assert len(caplog.records) == 1
        assert "3 of 13 pictures" in caplog.text

    def test_broken_picture_is_loaded_all_the_same(self, tmp_path):
        write_folder(tmp_path, range(3))
        (tmp_path / "1.png").write_bytes(b"this is no picture")
        splits = FolderSource(str(tmp_path)).load()
        assert sum(map(len, splits.values())) == 3

    def test_mistakes(self, tmp_path):
        fails_in_one_line(FolderSource(str(tmp_path / "none")), "no folder", "none")
        fails_in_one_line(FolderSource(str(tmp_path)), "no pictures")
        write_folder(tmp_path, range(3), captions=None)
        fails_in_one_line(FolderSource(str(tmp_path)), "no captions", "metadata.jsonl", ".txt")
        (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.png", "caption": "x"}\n{oh')
        fails_in_one_line(FolderSource(str(tmp_path)), "metadata.jsonl", "line 2")

    def test_no_folder_to_train_on(self, tmp_path):
        for name, n in (("val", 1), ("test", 2)):
            write_folder(tmp_path / name, [n])
        fails_in_one_line(FolderSource(str(tmp_path)), "no training split, only test, validation")


class TestHub:
    def test_own_splits_are_used_and_columns_renamed(self, tmp_path):
        names = {"image": "picture", "caption": "text"}
        parts = {"train": [1, 2], "dev": [3], "test": [4]}
        saved = DatasetDict(
            {name: picture_rows(n).rename_columns(names).add_column("id", n)
             for name, n in parts.items()}
        )  # fmt: skip
        saved.save_to_disk(str(tmp_path / "set"))
        source = HubSource(str(tmp_path / "set"), image_column="picture", caption_column="text")
        assert by_split(source.load()) == {"train": {1, 2}, "validation": {3}, "test": {4}}

    def test_columns_may_have_each_other_s_names(self, tmp_path):
        swapped = picture_rows(range(9)).rename_columns({"image": "caption", "caption": "image"})
        swapped.save_to_disk(str(tmp_path / "set"))
        source = HubSource(str(tmp_path / "set"), image_column="caption", caption_column="image")
        assert set.union(*by_split(source.load()).values()) == set(range(9))

    def test_split_by_name_and_by_mapping(self, tmp_path):
        parts = {"a": range(0, 40), "b": range(40, 50), "c": range(50, 60)}
        DatasetDict({k: picture_rows(v) for k, v in parts.items()}).save_to_disk(tmp_path / "set")
        path = str(tmp_path / "set")
        one = by_split(HubSource(path, split="a").load())
        assert one["train"] | one["validation"] == set(range(40))
        both = by_split(HubSource(path, split={"train": "b", "validation": "c"}).load())
        assert both == {"train": set(range(40, 50)), "validation": set(range(50, 60))}
        fails_in_one_line(HubSource(path), "no training split", "a, b, c", "split=")
        fails_in_one_line(HubSource(path, split="d"), "'d'", "a, b, c")

    def test_slice_of_a_split(self, tmp_path):
        picture_rows(range(100)).to_parquet(tmp_path / "train.parquet")
        numbers = by_split(HubSource(str(tmp_path), split="train[:30]").load())
        assert numbers["train"] | numbers["validation"] == set(range(30))

    @pytest.mark.parametrize("count", [3, 150, 400])
    def test_stream_is_split_as_the_table_is(self, tmp_path, count):
        picture_rows(range(count)).to_parquet(tmp_path / "train.parquet")
        table = by_split(HubSource(str(tmp_path)).load())
        assert by_split(HubSource(str(tmp_path), streaming=True).load()) == table
        assert all(table.values())

    @pytest.mark.parametrize("streaming", [False, True])
    def test_rows_inserted_in_front_move_none(self, tmp_path, streaming):
        sides = []
        for numbers in (range(100, 300), range(400)):
            folder = tmp_path / str(len(numbers))
            folder.mkdir()
            picture_rows(numbers).to_parquet(folder / "train.parquet")
            sides.append(by_split(HubSource(str(folder), streaming=streaming).load()))
        assert sides[0]["train"] <= sides[1]["train"]
        assert sides[0]["validation"] <= sides[1]["validation"]

    def test_identical_pictures_are_on_one_side(self, tmp_path):
        rows = Dataset.from_dict(
            {"image": [png(n % 20) for n in range(100)], "caption": [str(n) for n in range(100)]}
        )
        rows.save_to_disk(str(tmp_path / "set"))
        splits = HubSource(str(tmp_path / "set"), validation_fraction=0.3).load()
        sides = [{row["image"].getpixel((0, 0)) for row in split} for split in splits.values()]
        assert all(sides)
        assert not set.intersection(*sides)

    def test_several_captions(self, tmp_path):
        rows = Dataset.from_dict({"image": [png(1), png(2)], "caption": [["a", "b"], ["c"]]})
        rows.save_to_disk(str(tmp_path / "set"))
        splits = HubSource(str(tmp_path / "set")).load()
        assert splits["train"].features["caption"] == List(Value("string"))

    def test_wrong_column(self, tmp_path):
        picture_rows(range(3)).save_to_disk(str(tmp_path / "set"))
        path = str(tmp_path / "set")
        fails_in_one_line(
            HubSource(path, caption_column="text"), "'text'", "image, caption", "caption_column"
        )
        fails_in_one_line(HubSource(path, image_column="jpg"), "'jpg'", "image_column")

    def test_column_that_holds_something_else(self, tmp_path):
        rows = picture_rows(range(3)).add_column("id", [1, 2, 3])
        rows.save_to_disk(str(tmp_path / "set"))
        path = str(tmp_path / "set")
        fails_in_one_line(HubSource(path, caption_column="id"), "no text in column 'id'")
        fails_in_one_line(HubSource(path, image_column="id"), "no pictures in column 'id'")

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("column", ["image", "jpg"])
    def test_broken_picture_is_loaded_all_the_same(self, tmp_path, column, streaming):
        images = [png(n) for n in range(5)] + [b"this is no picture"]
        rows = Dataset.from_dict({column: images, "caption": ["x"] * 6})
        rows.cast_column(column, Image()).to_parquet(tmp_path / "train.parquet")
        source = HubSource(str(tmp_path), image_column=column, streaming=streaming)
        splits = source.load()
        encoded = [split.cast_column("image", Image(decode=False)) for split in splits.values()]
        assert sum(1 for split in encoded for _ in split) == 6

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize("nothing", [None, "", []])
    def test_rows_without_a_caption_are_skipped(self, tmp_path, caplog, nothing, streaming):
        some = ["x"] if nothing == [] else "x"
        images = [png(n) for n in range(5)] + [b"this is no picture"]
        rows = Dataset.from_dict({"image": images, "caption": [some, nothing] + [some] * 4})
        rows = rows.cast_column("image", Image())
        rows.to_parquet(tmp_path / "train.parquet")
        splits = HubSource(str(tmp_path), streaming=streaming).load()
        encoded = [split.cast_column("image", Image(decode=False)) for split in splits.values()]
        captions = [row["caption"] for split in encoded for row in split]
        if streaming:  # they are counted as they come
            captions.remove(nothing)
        else:
            assert "1 of 6 rows" in caplog.text
        assert captions == [some] * 5

    def test_unknown_data_set_without_a_network(self, monkeypatch):
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        fails_in_one_line(HubSource("nobody/nothing"), "'nobody/nothing'", "network")

    def test_folder_without_data(self, tmp_path):
        fails_in_one_line(HubSource(str(tmp_path)), "could not be loaded", str(tmp_path))


class TestParquet:
    @pytest.mark.parametrize("form", ["bytes", "struct", "path"])
    def test_forms_of_pictures(self, tmp_path, form):
        rows = picture_rows(range(30))
        if form == "struct":
            rows = rows.cast_column("image", Image())
        elif form == "path":
            write_folder(tmp_path / "files", range(30), captions=None)
            paths = [f"files/{n}.png" for n in range(30)]
            rows = rows.remove_columns("image").add_column("image", paths)
        rows.to_parquet(tmp_path / "pictures.parquet")
        numbers = by_split(ParquetSource(str(tmp_path / "pictures.parquet")).load())
        assert all(numbers.values())
        assert numbers["train"] | numbers["validation"] == set(range(30))

    def test_bytes_and_struct_are_split_alike(self, tmp_path):
        rows = picture_rows(range(50))
        rows.to_parquet(tmp_path / "bytes.parquet")
        rows.cast_column("image", Image()).to_parquet(tmp_path / "struct.parquet")
        one, two = (
            by_split(ParquetSource(str(tmp_path / f"{form}.parquet")).load())
            for form in ("bytes", "struct")
        )
        assert one == two

    def test_paths_are_relative_to_their_own_file(self, tmp_path):
        for name, numbers in (("a", [1, 2]), ("b", [3])):
            write_folder(tmp_path / name, numbers, captions=None)
            paths = {"image": [f"{n}.png" for n in numbers]}
            captions = {"caption": [f"number {n}" for n in numbers]}
            Dataset.from_dict(paths | captions).to_parquet(tmp_path / name / "x.parquet")
        numbers = by_split(ParquetSource(str(tmp_path)).load())
        assert numbers["train"] | numbers["validation"] == {1, 2, 3}

    def test_pattern_and_splits_in_names(self, tmp_path):
        for name, n in (("train-00000", 1), ("train-00001", 2), ("val-00000", 3), ("test", 4)):
            picture_rows([n]).to_parquet(tmp_path / f"{name}.parquet")
        expected = {"train": {1, 2}, "validation": {3}, "test": {4}}
        assert by_split(ParquetSource(str(tmp_path)).load()) == expected
        pattern = str(tmp_path / "[tv]*-*.parquet")
        assert by_split(ParquetSource(pattern).load()) == {"train": {1, 2}, "validation": {3}}

    def test_splits_in_folders(self, tmp_path):
        for name, n in (("train", 1), ("validation", 2)):
            (tmp_path / name).mkdir()
            picture_rows([n]).to_parquet(tmp_path / name / "0.parquet")
        numbers = by_split(ParquetSource(str(tmp_path)).load())
        assert numbers == {"train": {1}, "validation": {2}}

    def test_mistakes(self, tmp_path):
        path = str(tmp_path / "x.parquet")
        fails_in_one_line(ParquetSource(path), "no parquet file", "x.parquet")
        picture_rows(range(3)).to_parquet(path)
        fails_in_one_line(ParquetSource(path, image_column="jpg"), "'jpg'", "image, caption")
        (tmp_path / "x.parquet").write_bytes(b"this is no parquet")
        fails_in_one_line(ParquetSource(path), "x.parquet", "could not be read")
