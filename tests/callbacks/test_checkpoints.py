"""The best checkpoint of a run that is moved, copied, or not complete."""

import shutil

import pytest
import pytorch_lightning as pl
import torch

from helpers import tiny
from tilewright.callbacks import UpdateBoundaryCheckpoint


class UpdateIndex(pl.Callback):
    """Logs the index of the update at each validation. The lowest is that of the first one."""

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("index", float(trainer.global_step))


def train(folder, steps):
    """Trains a run whose best checkpoint is that of the first validation."""
    best = UpdateBoundaryCheckpoint(
        folder / "checkpoints", "best", "index", enable_version_counter=False
    )
    tiny.train("dvae", folder, steps, extra_callbacks=[UpdateIndex(), best])
    return best


def best_step(folder):
    return torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["global_step"]


@pytest.fixture
def run(tmp_path):
    """Run of 14 updates, validated at 7 and 14, whose best checkpoint is at 7."""
    train(tmp_path / "run", 14)
    assert best_step(tmp_path / "run") == 7
    return tmp_path / "run"


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_a_moved_or_copied_run_keeps_its_best_checkpoint(run, move, tmp_path):
    move(run, tmp_path / "other" / "place")
    best = train(tmp_path / "other" / "place", 21)
    assert best_step(tmp_path / "other" / "place") == 7
    assert best.best_model_path == str(tmp_path / "other" / "place" / "checkpoints" / "best.ckpt")


def test_a_run_whose_checkpoints_folder_is_a_link_becomes_the_latest(run, tmp_path):
    (run / "config.yaml").touch()
    shutil.move(run / "checkpoints", tmp_path / "disk")
    (run / "checkpoints").symlink_to(tmp_path / "disk")
    best = train(run, 21)
    assert best.run == run
    assert (tmp_path / "latest").read_text() == "run\n"


def test_without_the_best_checkpoint_the_next_validation_writes_it(run):
    (run / "checkpoints" / "best.ckpt").unlink()
    train(run, 21)
    assert best_step(run) == 21
