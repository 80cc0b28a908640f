"""Files below a folder: hidden and system folders, links, loops and names."""

import logging
import os

import pytest
from datasets import Dataset

from helpers.numbered_images import numbered_rows, png
from tilewright.data.sources import FolderSource, ParquetSource, WebDatasetSource
from tilewright.data.sources.listing import list_files


def touch(*files):
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")


def names(listing):
    return [file.relative_to(listing.root).as_posix() for file in listing.files]


@pytest.mark.parametrize(
    "name",
    [
        "a.png",
        "B.PNG",
        "x/y/z.png",
        "thumbs/a.png",
        "two\nlines.png",
        "-dash.png",
        "a b.png",
        "日本語.png",
    ],
)
def test_visible_files_are_listed(tmp_path, name):
    touch(tmp_path / name)
    assert names(list_files(tmp_path)) == [name]


@pytest.mark.parametrize(
    "name",
    [
        ".hidden.png",
        "._a.png",
        ".ipynb_checkpoints/a.png",
        "x/.thumbnails/large/a.png",
        "__MACOSX/a.png",
        "photos/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.png",
        "$RECYCLE.BIN/a.png",
    ],
)
def test_hidden_and_system_files_are_left_out_and_counted(tmp_path, name, caplog):
    touch(tmp_path / "a.png", tmp_path / name)
    listing = list_files(tmp_path)
    with caplog.at_level(logging.INFO):
        assert listing.select({".png"}) == [tmp_path / "a.png"]
    assert "1 file(s)" in caplog.text
    assert name in caplog.text


def test_the_folder_itself_may_be_hidden(tmp_path):
    touch(tmp_path / ".cache" / "a.png")
    assert names(list_files(tmp_path / ".cache")) == ["a.png"]


def test_links_are_followed_without_loops(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    touch(root / "a.png", other / "deep" / "b.png", tmp_path / "c.png")
    (root / "folder").symlink_to(other)
    (root / "link.png").symlink_to(tmp_path / "c.png")
    (root / "loop").symlink_to(root)
    (root / "outer").symlink_to(tmp_path)
    (root / "itself").symlink_to(root / "itself")
    (other / "back").symlink_to(root)
    (root / "gone.png").symlink_to(tmp_path / "missing.png")
    assert names(list_files(root)) == [
        "a.png", "folder/deep/b.png", "gone.png", "itself", "link.png",
    ]  # fmt: skip


def test_a_linked_root_is_listed(tmp_path):
    touch(tmp_path / "real" / "a.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert names(list_files(tmp_path / "link")) == ["a.png"]


def test_each_folder_is_read_once_by_its_own_path(tmp_path):
    touch(tmp_path / "z" / "a.png", tmp_path / ".store" / "b.png")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    (tmp_path / "data").symlink_to(tmp_path / ".store")
    listing = list_files(tmp_path)
    assert names(listing) == ["data/b.png", "z/a.png"]
    assert listing.hidden == []


def test_pipes_and_folders_are_not_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    touch(tmp_path / "folder.png" / "a.png")
    assert names(list_files(tmp_path)) == ["folder.png/a.png"]


def test_names_that_are_not_unicode_are_counted(tmp_path, caplog):
    touch(tmp_path / "a.png", tmp_path / os.fsdecode(b"\xff.png"))
    assert names(list_files(tmp_path)) == ["a.png"]
    assert "1 name(s)" in caplog.text


def test_folders_that_cannot_be_read_are_counted(tmp_path, caplog, monkeypatch):
    touch(tmp_path / "a.png", tmp_path / "closed" / "b.png")
    scandir = os.scandir

    def scan(folder):  # permissions do not stop a test that runs as root
        if folder.name == "closed":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", scan)
    assert names(list_files(tmp_path)) == ["a.png"]
    assert "1 folder(s)" in caplog.text
    assert "Permission denied" in caplog.text


def test_a_link_to_an_impossible_name_is_a_broken_link(tmp_path):
    touch(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("x" * 300)
    assert names(list_files(tmp_path)) == ["a.png", "b.png"]


def write_source(kind, folder, number):
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "folder":
        (folder / f"{number}.png").write_bytes(png(number))
        (folder / f"{number}.txt").write_text(f"number {number}")
    elif kind == "parquet":
        numbered_rows([number]).to_parquet(folder / f"{number}.parquet")
    else:
        touch(folder / f"{number}.tar")


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_sources_follow_links_and_leave_hidden_folders_out(tmp_path, kind):
    root = tmp_path / "root"
    for folder, number in (("a", 1), (".ipynb_checkpoints", 2), ("__MACOSX", 3)):
        write_source(kind, root / folder, number)
    write_source(kind, tmp_path / "elsewhere", 4)
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    if kind == "webdataset":
        files = WebDatasetSource(str(root)).files()
        assert [file.rpartition("/")[2] for file in files] == ["1.tar", "4.tar"]
        return
    source = (FolderSource if kind == "folder" else ParquetSource)(str(root))
    splits: dict[str, Dataset] = source.load()
    captions = [row["caption"] for split in splits.values() for row in split]
    assert sorted(captions) == ["number 1", "number 4"]
