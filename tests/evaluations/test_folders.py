"""Folders of evaluations that run at the same time, or were killed."""

import errno

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
