"""A checkpoint is a whole one, or the one before it."""

import resource

import pytest
import torch

from tilewright.errors import UserError
from tilewright.training.checkpoint_io import AtomicCheckpointIO


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "checkpoints"


@pytest.fixture
def small_disk():
    """Files of more than 100 kB cannot be written, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_it_is_there_and_nothing_else_is(folder):
    for value in (1, 2):
        AtomicCheckpointIO().save_checkpoint({"step": value}, folder / "last.ckpt")
    assert torch.load(folder / "last.ckpt", weights_only=True) == {"step": 2}
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("before", [True, False])
def test_a_full_disk_leaves_the_one_before(folder, small_disk, before):
    if before:
        AtomicCheckpointIO().save_checkpoint({"step": 1}, folder / "last.ckpt")
    with pytest.raises(UserError) as caught:
        AtomicCheckpointIO().save_checkpoint({"weight": torch.rand(10**6)}, folder / "last.ckpt")
    line = str(caught.value)
    assert "\n" not in line
    assert f"{folder / 'last.ckpt'} cannot be written" in line
    assert "File too large" in line
    assert ("still there" in line) == before
    assert f"resume={folder.parent}" in line
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"] * before
    if before:
        assert torch.load(folder / "last.ckpt", weights_only=True) == {"step": 1}


def test_a_folder_that_cannot_be_made_is_one_line(folder):
    folder.parent.mkdir()
    folder.touch()
    with pytest.raises(UserError, match="cannot be written"):
        AtomicCheckpointIO().save_checkpoint({}, folder / "last.ckpt")
