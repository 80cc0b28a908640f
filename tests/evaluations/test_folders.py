"""Folders of evaluations that run at the same time, or were killed."""

import pytest
from filelock import Timeout

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
        folders.lock(tmp_path).acquire(blocking=False)
    with folders.lock(tmp_path):
        pass
