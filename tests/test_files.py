"""Atomic writes of files and folders."""

import os
from pathlib import Path

import pytest

from tilewright.errors import UserError
from tilewright.files import atomic_file, atomic_folder, locked_folder, write_atomically


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    write_atomically(path, "old")
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half of the new")
        assert path.read_text() == "old"
        raise RuntimeError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_a_leftover_of_a_killed_process_is_replaced(tmp_path):
    (tmp_path / ".file.txt.tmp").write_text("left over")
    write_atomically(tmp_path / "file.txt", "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path):
    (tmp_path / ".file.txt.tmp").symlink_to(tmp_path / "other")
    write_atomically(tmp_path / "file.txt", "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_files_are_on_the_disk_before_their_name_is(tmp_path, monkeypatch):
    events = []

    def fsync(descriptor):
        events.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)

    monkeypatch.setattr(os, "fsync", fsync)
    for method in ("rename", "replace"):
        original = getattr(Path, method)
        monkeypatch.setattr(
            Path, method, lambda *paths, f=original: (events.append("renamed"), f(*paths))[1]
        )
    write_atomically(tmp_path / "file", "a")
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "a").mkdir()
        (temporary / "a" / "b").write_text("b")
    assert events == [".file.tmp", "renamed", "b", "renamed"]


def test_a_folder_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "parent" / "folder"
    with pytest.raises(RuntimeError), atomic_folder(path) as temporary:  # noqa: PT012
        (temporary / "a").write_text("a")
        raise RuntimeError
    assert list(path.parent.iterdir()) == []
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("a")
        assert not path.exists()
    assert (path / "a").read_text() == "a"
    assert list(path.parent.iterdir()) == [path]


def test_the_first_of_two_writers_of_a_folder_wins(tmp_path):
    path = tmp_path / "folder"
    with atomic_folder(path) as second:
        (second / "a").write_text("second")
        with atomic_folder(path) as first:
            (first / "a").write_text("first")
    assert (path / "a").read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_an_exclusive_folder_is_not_replaced_by_that_of_another_writer(tmp_path):
    path = tmp_path / "folder"
    refused = pytest.raises(UserError, match="another process has made")
    with refused, atomic_folder(path, exclusive=True) as second:
        (second / "a").write_text("second")
        with atomic_folder(path, exclusive=True) as first:
            (first / "a").write_text("first")
    assert (path / "a").read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_locked_folder_admits_one_process_and_leaves_no_lock(tmp_path):
    def lock(folder):
        return locked_folder(folder, "in use", "choose another")

    folder = tmp_path / "a" / "b"
    with lock(folder):
        with pytest.raises(UserError, match="in use"), lock(folder):
            pass
        assert folder.is_dir()
    assert not folder.exists()
    folder.mkdir()
    with lock(folder):
        pass
    assert list(folder.iterdir()) == []  # and the folder that was there before stays
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another"), lock(tmp_path / "file" / "a"):
        pass
