"""Folders of evaluations that run at the same time, or were killed."""

import errno
import os
import shutil

import pytest
from filelock import FileLock, Timeout

from tilewright.errors import UserError
from tilewright.evaluations import folders


def test_folder_of_a_killed_evaluation_is_removed_and_one_in_use_stays(tmp_path):
    killed = tmp_path / ".eval-killed"
    killed.mkdir()
    (killed / "image.png").write_text("an image")
    with folders.temporary_folder(tmp_path) as first:
        assert not killed.exists()
        (first / "image.png").write_text("another image")
        with folders.temporary_folder(tmp_path) as second:
            assert not list(second.iterdir())
        assert [path.name for path in first.iterdir()] == ["image.png"]
    assert not list(tmp_path.glob(".eval-*"))


def test_no_lock_is_held_in_a_folder_that_is_removed(tmp_path, monkeypatch):
    """On NFS, an open file stays in its folder, which then cannot be removed."""
    removed, remove = [], shutil.rmtree

    def check_and_remove(folder, **arguments):
        removed.append(folder.name)
        with FileLock(folder / folders.LOCK, blocking=False):  # raises if it is held
            pass
        remove(folder, **arguments)

    monkeypatch.setattr(shutil, "rmtree", check_and_remove)
    (tmp_path / ".eval-killed").mkdir()
    with folders.temporary_folder(tmp_path):
        assert removed == [".eval-killed"]
    assert len(removed) == 2
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_removed_stays_for_the_next_evaluation(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", fail)
        for _ in range(2):
            with folders.temporary_folder(tmp_path):
                pass
    assert list(tmp_path.glob(".eval-*"))
    with folders.temporary_folder(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_results_are_locked_for_one_process(tmp_path):
    with folders.lock(tmp_path), pytest.raises(Timeout):
        FileLock(tmp_path / folders.LOCK).acquire(blocking=False)
    with folders.lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_locks_is_a_user_error(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", fail)
    with (
        pytest.raises(UserError, match=r"cannot be written or locked \(No locks available\)"),
        folders.temporary_folder(tmp_path),
    ):
        pass
