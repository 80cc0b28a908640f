"""A checkpoint file is complete, or the previous one is unchanged."""

import resource

import pytest
import torch

from tilewright.errors import UserError
from tilewright.training import AtomicCheckpointIO


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run" / "checkpoints"


@pytest.fixture
def small_disk():
    """Limits files to 100 kB, which fails like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_only_the_newest_checkpoint_is_left(folder):
    for value in (1, 2):
        AtomicCheckpointIO().save_checkpoint({"step": value}, folder / "last.ckpt")
    assert torch.load(folder / "last.ckpt", weights_only=True) == {"step": 2}
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("has_previous", [True, False])
def test_a_full_disk_leaves_the_previous_checkpoint(folder, small_disk, has_previous):
    if has_previous:
        AtomicCheckpointIO().save_checkpoint({"step": 1}, folder / "last.ckpt")
    with pytest.raises(UserError) as caught:
        AtomicCheckpointIO().save_checkpoint({"weight": torch.rand(10**6)}, folder / "last.ckpt")
    message = str(caught.value)
    assert "\n" not in message
    assert f"{folder / 'last.ckpt'} cannot be written" in message
    assert "File too large" in message
    assert ("The previous checkpoint is unchanged" in message) == has_previous
    assert (f"resume={folder.parent}" in message) == has_previous
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"] * has_previous
    if has_previous:
        assert torch.load(folder / "last.ckpt", weights_only=True) == {"step": 1}


def test_a_folder_that_cannot_be_created_is_a_user_error(folder):
    folder.parent.mkdir()
    folder.touch()
    with pytest.raises(UserError, match="cannot be written"):
        AtomicCheckpointIO().save_checkpoint({}, folder / "last.ckpt")
