"""Captions of a folder: metadata, files beside the images, encodings, and unused values."""

import csv
import json
import logging
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.data.captions import find_captions
from tilewright.data.sources.folder_captions import read_captions
from tilewright.data.sources.listing import list_files
from tilewright.errors import UserError

captions = st.text(
    st.characters(exclude_categories=["C", "Z"], include_characters=" ,;|\t\"'{}#\u200d"),
    min_size=1,
).filter(lambda text: find_captions(text)[0] == [text])


@pytest.fixture(autouse=True)
def visible_log(caplog):
    caplog.set_level(logging.INFO)


def read(root, column=None, per_file="auto", encoding=None):
    """Returns captions by the name of the image."""
    listing = list_files(root)
    images = [file for file in listing.files if file.suffix.lower() == ".png"]
    found = read_captions(listing, images, column, per_file, encoding)
    return {image.relative_to(root).as_posix(): texts for image, texts in found.items()}


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write_metadata(root, *records):
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, records)))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(captions, min_size=1, max_size=4, unique=True),
    st.sampled_from(["one", "lines", "jsonl", ",", ";", "\t", "|"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_captions_are_read_as_written(texts, form, encoding):
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for n, text in enumerate(texts):
            touch(root, f"{n}.png")
            if form in ("one", "lines"):
                (root / f"{n}.txt").write_text(text + "\n", encoding=encoding)
        if form == "jsonl":
            lines = [json.dumps({"file_name": f"{n}.png", "text": t}) for n, t in enumerate(texts)]
            (root / "metadata.jsonl").write_text("\n".join(lines), encoding=encoding)
        elif form not in ("one", "lines"):
            with (root / "metadata.csv").open("w", encoding=encoding, newline="") as file:
                writer = csv.writer(file, delimiter=form)
                writer.writerow(["file_name", "caption"])
                writer.writerows((f"{n}.png", text) for n, text in enumerate(texts))
        found = read(root, per_file=form if form in ("one", "lines") else "auto")
        assert [found[f"{n}.png"] for n in range(len(texts))] == [[text] for text in texts]


@pytest.mark.parametrize("form", ["txt", "csv", "tsv"])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_captions_in_any_encoding_are_read(tmp_path, caplog, form, encoding):
    texts = ["ein grüner Kreis", "blau über rot", "no special letter"]
    touch(tmp_path, *(f"{n}.png" for n in range(3)))
    if form == "txt":
        for n, text in enumerate(texts):
            (tmp_path / f"{n}.txt").write_text(text, encoding=encoding)
    else:
        separator = {"csv": ";", "tsv": "\t"}[form]
        rows = [("file_name", "caption"), *((f"{n}.png", text) for n, text in enumerate(texts))]
        text = "\r\n".join(map(separator.join, rows))
        (tmp_path / f"metadata.{form}").write_text(text, encoding=encoding)
    assert list(read(tmp_path).values()) == [[text] for text in texts]
    assert ("read as cp1252" in caplog.text) == (encoding == "cp1252")
    if form == "txt" and encoding == "cp1252":
        assert "2 of 3 text files are not UTF-8" in caplog.text
        assert "('ein grüner Kreis')" in caplog.text
        assert "0.txt" in caplog.text


def test_text_that_cannot_be_decoded_is_counted(tmp_path, caplog):
    touch(tmp_path, "1.png", "2.png")
    (tmp_path / "1.txt").write_bytes(b"\x00\x01\xff\xfe\x00")
    (tmp_path / "2.txt").write_text("a circle")
    assert read(tmp_path) == {"2.png": ["a circle"]}
    assert (
        "1 text file(s) cannot be read, such as '1.txt': make them readable, in UTF-8"
        in caplog.text
    )


def test_rows_without_an_image_are_counted(tmp_path, caplog):
    touch(tmp_path, "1.png", "2.png")
    names = ["1.png", "2.png", "3.png", None, "", ["1.png"], 1.5, "../1.png", "sub/1.png"]
    write_metadata(tmp_path, *({"file_name": name, "caption": "x"} for name in names))
    assert read(tmp_path) == {"1.png": ["x"], "2.png": ["x"]}
    assert "7 of 9 rows of" in caplog.text
    assert "metadata.jsonl do not name an image, such as '3.png'" in caplog.text


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("./a/1.png", "a/1.png"),
        ("a\\1.png", "a/1.png"),
        (".\\a\\1.png", "a/1.png"),
        ("/a/1.png", "a/1.png"),
        ("a/1", "a/1.png"),
        ("A/1.PNG", "a/1.png"),
        ("two%20words.png", "two words.png"),
        ("cafe\u0301.png", "café.png"),
        (7, "7.png"),
    ],
)
def test_names_are_matched_where_only_one_image_can_be_meant(tmp_path, caplog, name, image):
    touch(tmp_path, image, "other.png")
    write_metadata(tmp_path, {"file_name": name, "caption": "x"})
    assert read(tmp_path) == {image: ["x"]}
    assert not caplog.records


@pytest.mark.parametrize(
    ("names", "images"),
    [
        (["1"], ["1.png", "1.PNG"]),
        (["A.png"], ["a.png", "a.PNG"]),
        (["a.png", "A.png"], ["A.png", "b.png"]),  # a.png was deleted, and is not A.png
    ],
)
def test_names_that_may_mean_several_images_are_counted(tmp_path, caplog, names, images):
    touch(tmp_path, "some.png", *images)
    write_metadata(tmp_path, *({"file_name": name, "caption": name} for name in [*names, "some"]))
    found = read(tmp_path)
    assert found.pop("some.png") == ["some"]
    assert found == ({"A.png": ["A.png"]} if len(names) == 2 else {})
    assert "rows of" in caplog.text
    assert f"such as {names[0]!r}" in caplog.text


def test_metadata_of_missing_images_alone_is_a_warning_about_the_names(tmp_path, caplog):
    touch(tmp_path, "1.png")
    write_metadata(tmp_path, *({"file_name": f"x/{n}.png", "caption": "x"} for n in range(3)))
    assert read(tmp_path) == {}
    assert re.search(r"3 of 3 rows of .* do not name an image, .*'x/0\.png'", caplog.text)


def test_values_that_are_not_text_are_counted(tmp_path, caplog):
    values = ["a", float("nan"), {}, True, {"en": "a"}, "\ud83d", 7, None, ["b", float("nan")]]
    touch(tmp_path, *(f"{n}.png" for n in range(len(values))))
    write_metadata(
        tmp_path, *({"file_name": f"{n}.png", "caption": v} for n, v in enumerate(values))
    )
    assert read(tmp_path) == {"0.png": ["a"], "8.png": ["b"]}
    assert "4 × caption is not text, 4 × no caption, such as row 2" in caplog.text


def test_missing_values_of_a_table_are_counted(tmp_path, caplog):
    touch(tmp_path, "1.png", "2.png", "3.png", "4.png")
    (tmp_path / "metadata.csv").write_text("file_name,caption\n1.png,\n2.png,nan\n3.png\n4.png,x")
    assert read(tmp_path) == {"4.png": ["x"]}
    assert "3 × no caption" in caplog.text


def test_rows_of_one_image_are_joined(tmp_path):
    touch(tmp_path, "1.png")
    (tmp_path / "metadata.csv").write_text("file_name;text\n1.png;a\n1.png;b\n1;a")
    write_metadata(tmp_path, {"file_name": "1.png", "caption": ["c", "a"]})
    assert read(tmp_path) == {"1.png": ["a", "b", "c"]}


@pytest.mark.parametrize(
    "names",
    [
        ["1.png.txt", "1.txt", "1.png.caption", "1.caption", "1.png.json", "1.json"],
        ["1.PNG.TXT", "1.Caption"],
    ],
)
def test_files_beside_an_image_have_an_order_of_preference(tmp_path, names):
    touch(tmp_path, "1.png")
    for name in names:
        text = json.dumps({"caption": name}) if name.endswith("json") else name
        (tmp_path / name).write_text(text)
    for name in names:
        assert read(tmp_path) == {"1.png": [name]}
        (tmp_path / name).write_text(" \n")  # the next one is used


def test_the_text_of_an_image_is_not_that_of_an_image_in_another_case(tmp_path, caplog):
    touch(tmp_path, "a.png", "A.png", "B.png")
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    assert read(tmp_path) == {"a.png": ["a.txt"], "B.png": ["b.txt"]}


def test_metadata_precedes_text_files_and_both_are_counted(tmp_path, caplog):
    touch(tmp_path, "1.png", "2.png")
    write_metadata(tmp_path, {"file_name": "1.png", "caption": "a"})
    for name in ("1.txt", "2.txt", "2.caption", "3.txt"):
        (tmp_path / name).write_text(name)
    assert read(tmp_path) == {"1.png": ["a"], "2.png": ["2.txt"]}
    assert "2 text file(s) are not used, such as '1.txt'" in caplog.text
    assert "1 text file(s) do not match an image, such as '3.txt'" in caplog.text


def test_text_without_images_is_named_when_there_are_no_captions(tmp_path, caplog):
    touch(tmp_path, "1.png", "captions.txt")
    assert read(tmp_path) == {}
    assert "1 text file(s) do not match an image, such as 'captions.txt'" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_files_without_permission_are_counted(tmp_path, caplog):
    touch(tmp_path, "1.png", "2.png", "1.txt")
    (tmp_path / "1.txt").chmod(0)
    (tmp_path / "2.txt").write_text("a circle")
    assert read(tmp_path) == {"2.png": ["a circle"]}
    assert "1 text file(s) cannot be read, such as '1.txt'" in caplog.text


def test_broken_links_are_counted(tmp_path, caplog):
    touch(tmp_path, "1.png", "2.png")
    (tmp_path / "1.txt").symlink_to("nowhere")
    (tmp_path / "2.txt").write_text("a circle")
    assert read(tmp_path) == {"2.png": ["a circle"]}
    assert "1 text file(s) cannot be read, such as '1.txt'" in caplog.text


def test_a_record_may_lack_the_caption_but_not_all_of_them(tmp_path):
    touch(tmp_path, "1.png", "2.png")
    write_metadata(tmp_path, {"file_name": "1.png"}, {"file_name": "2.png", "text": "a"})
    assert read(tmp_path) == {"2.png": ["a"]}
    with pytest.raises(UserError, match=r"no column 'said', only file_name, text: set .*column"):
        read(tmp_path, column="said")


def test_metadata_without_rows_is_named(tmp_path, caplog):
    touch(tmp_path, "1.png", "metadata.jsonl")
    (tmp_path / "metadata.csv").write_text("file_name,caption\n")
    assert read(tmp_path) == {}
    assert "metadata.csv has no rows" in caplog.text
    assert "metadata.jsonl has no rows" in caplog.text


@pytest.mark.parametrize("name", ["1.txt", "metadata.csv"])
def test_the_encoding_can_be_set(tmp_path, caplog, name):
    touch(tmp_path, "1.png")
    table = "file_name,caption\n1.png," if name == "metadata.csv" else ""
    (tmp_path / name).write_text(table + "красный круг", encoding="koi8-r")
    assert read(tmp_path, encoding="koi8-r") == {"1.png": ["красный круг"]}
    assert not caplog.records
    with pytest.raises(UserError, match="encoding=koi9 is not an encoding"):
        read(tmp_path, encoding="koi9")


@pytest.mark.parametrize("text", ["{no", '["a"]', '"a"', '{"title": "a"}'])
def test_json_files_without_a_caption_are_counted(tmp_path, caplog, text):
    touch(tmp_path, "1.png", "2.png")
    (tmp_path / "1.json").write_text(text)
    (tmp_path / "2.json").write_text('{"caption": "b"}')
    assert read(tmp_path) == {"2.png": ["b"]}
    assert "1 text file(s) are not a JSON object with a caption in" in caplog.text
    assert "'1.json'" in caplog.text


def test_columns_may_differ_in_case_and_spaces(tmp_path):
    touch(tmp_path, "1.png")
    write_metadata(tmp_path, {"File_Name": "1.png", " Caption ": "a"})
    assert read(tmp_path) == {"1.png": ["a"]}
    write_metadata(tmp_path, {"path": "1.png", "caption": "a"})
    with pytest.raises(UserError, match="only path, caption: rename the column"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("notes.xyz", "the file is not an image"),
        ("0", "it may mean 0.jpg or 0.png"),
        (None, "it is not a name"),
        ("3.png", "there is no such file"),
    ],
)
def test_the_reason_why_a_row_names_no_image_is_shown(tmp_path, caplog, name, reason):
    touch(tmp_path, "0.png", "0.jpg", "1.png", "notes.xyz")
    write_metadata(
        tmp_path,
        {"file_name": "1.png", "caption": "a"},
        {"file_name": name, "caption": "b"},
    )
    listing = list_files(tmp_path)
    images = listing.select({".png", ".jpg"})
    assert list(read_captions(listing, images, None, "auto").values()) == [["a"]]
    assert reason in caplog.text
