"""FolderSource: captions, splits and mistakes."""

import json
import logging
from collections import Counter

import PIL.Image
import pytest
from datasets import List, Value

from helpers.numbered_images import (
    assert_load_fails,
    numbered_rows,
    numbers_by_split,
    png,
    write_folder,
)
from tilewright.data import CaptionedImages
from tilewright.data.sources import FolderSource, ParquetSource, folder, splits
from tilewright.data.transforms import CenterCrop


@pytest.mark.parametrize("captions", ["jsonl", "csv", "txt"])
def test_caption_formats(tmp_path, captions):
    numbers = numbers_by_split(FolderSource(write_folder(tmp_path, range(60), captions)).load())
    assert set(numbers) == {"train", "validation"}
    assert numbers["train"] | numbers["validation"] == set(range(60))
    assert not numbers["train"] & numbers["validation"]
    assert 1 <= len(numbers["validation"]) < 12


def test_splits_depend_on_the_seed_and_not_on_the_place_of_the_folder(tmp_path):
    one, two = (write_folder(tmp_path / name, range(60)) for name in ("one", "two"))
    expected = numbers_by_split(FolderSource(one, validation_fraction=0.3).load())
    assert numbers_by_split(FolderSource(two, validation_fraction=0.3).load()) == expected
    assert numbers_by_split(FolderSource(one, validation_fraction=0.3, seed=1).load()) != expected


def test_log_has_the_sizes_of_the_splits_and_the_origin_of_validation(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="tilewright")
    write_folder(tmp_path, range(7))
    splits = FolderSource(str(tmp_path), validation_fraction=0.5).load()
    sizes = f"{len(splits['train'])} rows for training, {len(splits['validation'])} rows for"
    assert caplog.messages[-1] == (
        f"folder {str(tmp_path)!r}: {sizes} validation (held out by a hash of the images)"
    )
    write_folder(tmp_path / "test", range(7, 9))
    FolderSource(str(tmp_path)).load()
    assert "7 rows for training, 2 rows for validation (its split 'test'" in caplog.messages[-1]


def test_copies_under_other_names_are_in_the_same_split(tmp_path, caplog):
    write_folder(tmp_path, range(40))
    write_folder(tmp_path / "again", range(40))
    with caplog.at_level(logging.INFO, logger="tilewright"):
        splits = FolderSource(str(tmp_path), validation_fraction=0.5).load()
    captions = {name: Counter(split["caption"]) for name, split in splits.items()}
    assert all(count == 2 for counts in captions.values() for count in counts.values())
    assert not set(captions["train"]) & set(captions["validation"])
    assert [record.getMessage() for record in caplog.records][:-1] == [
        f"40 of 80 images of folder {str(tmp_path)!r} are copies, such as "
        f"{str(tmp_path / 'again' / '0.png')!r} of {str(tmp_path / '0.png')!r}: copies are in the "
        "same split"
    ]


def test_splits_are_those_of_the_same_images_in_parquet(tmp_path):
    write_folder(tmp_path / "images", range(60))
    numbered_rows(range(60)).to_parquet(tmp_path / "images.parquet")
    parquet = ParquetSource(str(tmp_path / "images.parquet"))
    expected = numbers_by_split(parquet.load())
    assert numbers_by_split(FolderSource(str(tmp_path / "images")).load()) == expected


def test_images_are_read_once_and_again_after_a_change(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(splits, "image_identity", lambda image: read.append(1) or str(image))
    source = FolderSource(write_folder(tmp_path, range(5)))
    for expected in (5, 5):
        source.load()
        assert len(read) == expected
    (tmp_path / "1.png").write_bytes(png(77) + b"longer")
    source.load()
    assert len(read) == 10


def test_added_images_do_not_move_others(tmp_path):
    few, many = (
        numbers_by_split(FolderSource(write_folder(tmp_path, n), validation_fraction=0.2).load())
        for n in (range(50, 100), range(200))
    )
    assert few["validation"] <= many["validation"]
    assert few["train"] <= many["train"]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_tiny_folder_has_both_splits(tmp_path, count):
    numbers = numbers_by_split(FolderSource(write_folder(tmp_path, range(count))).load())
    assert all(numbers.values())


def test_folders_are_splits(tmp_path):
    for name, numbers in (("train", [1, 2]), ("val", [3]), ("test", [4])):
        write_folder(tmp_path / name, numbers)
    numbers = numbers_by_split(FolderSource(str(tmp_path)).load())
    assert numbers == {"train": {1, 2}, "validation": {3}, "test": {4}}


def test_folders_are_splits_with_one_metadata_file(tmp_path):
    for name, n in (("train", 1), ("validation", 2)):
        write_folder(tmp_path / name, [n], captions=None)
    rows = [("train/1.png", "number 1"), ("validation/2.png", "number 2")]
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    numbers = numbers_by_split(FolderSource(str(tmp_path)).load())
    assert numbers == {"train": {1}, "validation": {2}}


def test_folders_named_after_a_split_may_end_in_digits(tmp_path):
    for name, n in (("train2017", 1), ("val2017", 2), ("test tubes", 3)):
        write_folder(tmp_path / name, [n])
    numbers = numbers_by_split(FolderSource(str(tmp_path)).load())
    assert numbers == {"train": {1, 3}, "validation": {2}}


def test_test_folder_becomes_the_validation_split(tmp_path):
    for name, n in (("train", 1), ("test", 2)):
        write_folder(tmp_path / name, [n])
    numbers = numbers_by_split(FolderSource(str(tmp_path)).load())
    assert numbers == {"train": {1}, "validation": {2}}


def test_other_folders_are_for_training(tmp_path):
    write_folder(tmp_path / "cats", range(5), "txt")
    write_folder(tmp_path / "dogs" / "big", range(5, 10), "txt")
    numbers = numbers_by_split(FolderSource(str(tmp_path)).load())
    assert numbers["train"] | numbers["validation"] == set(range(10))


def test_several_lines_are_several_captions(tmp_path):
    write_folder(tmp_path, range(4), "txt")
    (tmp_path / "2.txt").write_text("a two\n\n  the number two  \n")
    splits = FolderSource(str(tmp_path)).load()
    rows = [row for split in splits.values() for row in split]
    assert ["a two", "the number two"] in [row["caption"] for row in rows]
    assert all(split.features["caption"] == List(Value("string")) for split in splits.values())


def test_several_rows_of_one_image_are_its_captions(tmp_path):
    write_folder(tmp_path, range(2))
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": "1.png", "caption": "one more"}))
    captions = [row["caption"] for split in FolderSource(str(tmp_path)).load().values()
                for row in split]  # fmt: skip
    assert sorted(captions) == [["number 0"], ["number 1", "one more"]]


def test_named_caption_column(tmp_path):
    write_folder(tmp_path, range(3), captions=None)
    (tmp_path / "metadata.csv").write_text(
        "file_name,caption,said\n" + "\n".join(f"{n}.png,no,number {n}" for n in range(3))
    )
    numbers = numbers_by_split(FolderSource(str(tmp_path), caption_column="said").load())
    assert numbers["train"] | numbers["validation"] == {0, 1, 2}
    assert_load_fails(
        FolderSource(str(tmp_path), caption_column="lost"),
        "metadata.csv", "'lost'", "file_name, caption, said", "caption_column",
    )  # fmt: skip


def test_images_without_a_caption_are_rows_without_a_caption(tmp_path, caplog):
    write_folder(tmp_path, range(10))
    for n in range(10, 13):
        (tmp_path / f"{n}.png").write_bytes(png(n))
    (tmp_path / "12.txt").write_text(" \n")
    captions = [
        row["caption"] for split in FolderSource(str(tmp_path)).load().values() for row in split
    ]
    assert len(captions) == 13
    assert captions.count(None) == 3
    assert not caplog.records


def test_a_folder_without_captions_is_one_warning_with_the_forms(tmp_path, caplog):
    write_folder(tmp_path, range(9), captions=None)
    splits = FolderSource(str(tmp_path)).load()
    assert {row["caption"] for split in splits.values() for row in split} == {None}
    (record,) = caplog.records
    for word in ("contains no captions", "metadata.jsonl", ".txt"):
        assert word in record.getMessage()


def test_broken_images_are_loaded(tmp_path):
    write_folder(tmp_path, range(3))
    (tmp_path / "1.png").write_bytes(b"this is not an image")
    splits = FolderSource(str(tmp_path)).load()
    assert sum(map(len, splits.values())) == 3


FORMATS = {
    "jfif": "JPEG", "jp2": "JPEG2000", "ppm": "PPM", "ico": "ICO", "tga": "TGA", "mpo": "MPO",
    "JPG": "JPEG", "pcx": "PCX", "sgi": "SGI", "avif": "AVIF", "heic": "HEIF",
}  # fmt: skip


@pytest.mark.parametrize("captions", ["txt", "jsonl"])
def test_images_of_every_readable_format_are_used(tmp_path, captions):
    rows = []
    for suffix, form in FORMATS.items():
        PIL.Image.new("RGB", (32, 32), (200, 30, 30)).save(tmp_path / f"a.{suffix}", form)
        rows.append({"file_name": f"a.{suffix}", "caption": "red"})
        if captions == "txt":
            (tmp_path / f"a.{suffix}").rename(tmp_path / f"{suffix}.{suffix}")
            (tmp_path / f"{suffix}.txt").write_text("red")
    if captions == "jsonl":
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    crop = CenterCrop(16)
    data = CaptionedImages(FolderSource(str(tmp_path)), 16, 4, crop, crop)
    examples = [image for split in data.splits for image, _ in data.examples(split, 100)]
    assert len(examples) == len(FORMATS)
    for image in examples:
        assert image[:, 8, 8].tolist() == pytest.approx([0.78, 0.12, 0.12], abs=0.03)


def test_images_of_other_formats_are_counted_and_named(tmp_path, caplog):
    write_folder(tmp_path, range(3))
    (tmp_path / "x.svg").write_text("<svg/>")
    (tmp_path / "y.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0")
    (tmp_path / "notes.pdf").write_text("%PDF-1.7")
    assert sum(map(len, FolderSource(str(tmp_path)).load().values())) == 3
    (record,) = caplog.records
    assert record.getMessage() == (
        f"2 image(s) of other formats in {tmp_path} cannot be read and are left out, such as "
        "'x.svg': convert them to PNG"
    )


def test_heic_images_without_pillow_heif_are_counted(tmp_path, caplog, monkeypatch):
    write_folder(tmp_path, range(3))
    (tmp_path / "IMG_1.HEIC").write_bytes(b"")
    monkeypatch.setattr(folder, "IMAGE_SUFFIXES", folder.IMAGE_SUFFIXES - folder.HEIF_SUFFIXES)
    assert sum(map(len, FolderSource(str(tmp_path)).load().values())) == 3
    (record,) = caplog.records
    assert "1 HEIC image(s)" in record.getMessage()
    assert record.getMessage().endswith("'IMG_1.HEIC': pip install 'tilewright[heif]'")


def test_mistakes_are_one_line(tmp_path):
    assert_load_fails(FolderSource(str(tmp_path / "none")), "is not a folder", "none")
    (tmp_path / "file").touch()
    assert_load_fails(FolderSource(str(tmp_path / "file")), "is a file, not a folder")
    assert_load_fails(FolderSource(str(tmp_path)), "contains no images")
    write_folder(tmp_path, range(3), captions=None)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.png", "caption": "x"}\n{oh')
    assert_load_fails(FolderSource(str(tmp_path)), "metadata.jsonl", "line 2")


def test_folder_without_a_training_split_is_an_error(tmp_path):
    for name, n in (("val", 1), ("test", 2)):
        write_folder(tmp_path / name, [n])
    assert_load_fails(FolderSource(str(tmp_path)), "no training split, only test, validation")
