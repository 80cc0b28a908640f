"""A checkpoint file is complete, or the previous one is unchanged."""

import resource

import pytest
import torch

from tilewright.errors import UserError
from tilewright.training import AtomicCheckpointIO
from tilewright.training.checkpoint_steps import read_steps

LARGE = {"weight": torch.rand(10**6), "global_step": 2}


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
        AtomicCheckpointIO().save_checkpoint({"global_step": value}, folder / "last.ckpt")
    assert torch.load(folder / "last.ckpt", weights_only=True) == {"global_step": 2}
    assert read_steps(folder / "last.ckpt") == 2
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("has_previous", [True, False])
def test_a_full_disk_leaves_the_previous_checkpoint(folder, small_disk, has_previous):
    if has_previous:
        AtomicCheckpointIO().save_checkpoint({"global_step": 1}, folder / "last.ckpt")
    with pytest.raises(UserError) as caught:
        AtomicCheckpointIO().save_checkpoint(LARGE, folder / "last.ckpt")
    message = str(caught.value)
    assert "\n" not in message
    assert f"{folder / 'last.ckpt'} cannot be written" in message
    assert "File too large" in message
    assert ("The previous checkpoint is unchanged" in message) == has_previous
    assert (f"resume={folder.parent}" in message) == has_previous
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"] * has_previous
    if has_previous:
        assert torch.load(folder / "last.ckpt", weights_only=True) == {"global_step": 1}


def test_a_folder_that_cannot_be_created_is_a_user_error(folder):
    folder.parent.mkdir()
    folder.touch()
    with pytest.raises(UserError, match="cannot be written"):
        AtomicCheckpointIO().save_checkpoint({}, folder / "last.ckpt")


def test_the_number_of_updates_of_a_broken_checkpoint_is_unknown(folder):
    file = folder / "last.ckpt"
    assert read_steps(file) == 0
    AtomicCheckpointIO().save_checkpoint({"global_step": 3}, file)
    assert torch.load(file, weights_only=True, mmap=True) == {"global_step": 3}
    file.write_bytes(file.read_bytes()[:100])
    assert read_steps(file) == 0


def test_only_folders_of_older_shards_are_removed(folder):
    mine, shards = folder / "last.ckpt-before-the-change", folder / "last.ckpt-0123abcd"
    for path in (mine, shards):
        path.mkdir(parents=True)
    AtomicCheckpointIO().save_checkpoint({"global_step": 1}, folder / "last.ckpt")
    assert mine.is_dir()
    assert not shards.exists()
