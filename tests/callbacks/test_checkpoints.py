"""The best checkpoint of a moved run, and checkpoints of weights that are not finite."""

import math
import shutil
import signal

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from helpers import tiny
from helpers.probes import NanWeights
from tilewright.callbacks import LastCheckpoint, UpdateBoundaryCheckpoint, checkpoints
from tilewright.callbacks.checkpoints import best_score, weights_problem
from tilewright.distributed import launch
from tilewright.training import AtomicCheckpointIO, Trainer
from tilewright.training.checkpoint_steps import read_steps


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


@pytest.mark.parametrize(("update", "warned", "saved"), [(9, 13, 7), (14, 14, 13)])
@pytest.mark.parametrize("validation", [{}, {"limit_val_batches": 0}], ids=["validated", "not"])
def test_weights_that_are_not_finite_replace_no_checkpoint(
    update, warned, saved, validation, tmp_path, caplog
):
    last = tmp_path / "checkpoints" / "last.ckpt"
    tiny.train("dvae", tmp_path, 7, **validation)
    tiny.train("dvae", tmp_path, 14, extra_callbacks=[NanWeights(update)], **validation)
    assert read_steps(last) == saved
    assert caplog.text.count("the weights are not finite") == 1
    message = f"At update {warned} the weights are not finite, so last.ckpt of update {saved} is"
    assert message in caplog.text
    assert f"continue with resume={tmp_path}, and lower model.learning_rate" in caplog.text
    tiny.train("dvae", tmp_path, 14, **validation)
    assert read_steps(last) == 14


def test_one_warning_covers_the_best_and_the_last_checkpoint(run, caplog):
    before = {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    best = UpdateBoundaryCheckpoint(
        run / "checkpoints", "best", "index", mode="max", enable_version_counter=False
    )
    callbacks = [UpdateIndex(), best, NanWeights(15)]
    tiny.train("dvae", run, 21, extra_callbacks=callbacks)
    assert before == {path.name: path.read_bytes() for path in (run / "checkpoints").iterdir()}
    assert caplog.text.count("the weights are not finite") == 1


class OneWeight(pl.LightningModule):
    """Module of one trained and one frozen weight, whose validations measure the trained one."""

    def __init__(self):
        super().__init__()
        self.trained = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Parameter(torch.tensor(math.inf), requires_grad=False)

    def training_step(self, batch, index):
        return self.trained * 1.0

    def validation_step(self, batch, index):
        self.log("weight", self.trained)

    def configure_optimizers(self):
        return torch.optim.SGD([self.trained], lr=0.1)


def fit(folder, *callbacks, monitor=None, mode="min"):
    """Fits `OneWeight` in 4 updates with a validation after each second one."""
    kept = [LastCheckpoint(folder / "checkpoints")]
    if monitor is not None:
        best = UpdateBoundaryCheckpoint(folder / "checkpoints", "best", monitor, mode=mode)
        kept.insert(0, best)
    trainer = Trainer(
        max_steps=4,
        val_check_interval=2,
        accelerator="cpu",
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=[*callbacks, *kept],
    )
    rows = DataLoader(torch.zeros(4))
    trainer.fit(OneWeight(), rows, rows)
    return trainer


def test_frozen_weights_may_be_infinite(tmp_path):
    trainer = fit(tmp_path)
    assert weights_problem(trainer) is None
    assert read_steps(tmp_path / "checkpoints" / "last.ckpt") == 4


def test_a_run_without_finite_weights_has_no_checkpoint(tmp_path):
    trainer = fit(tmp_path / "first", NanWeights(1))
    assert not list(tmp_path.rglob("*.ckpt"))
    problem = weights_problem(trainer)
    assert problem.startswith("the weights are not finite, so no checkpoint is written. ")
    assert "start the run again with run_name=first, and lower " in problem


@pytest.mark.parametrize("stop", [True, False])
def test_weights_that_become_nan_with_a_request_to_stop_are_not_saved(tmp_path, stop):
    trainer = fit(tmp_path, NanWeights(3, stop))
    assert trainer.global_step == (3 if stop else 4)
    assert read_steps(tmp_path / "checkpoints" / "last.ckpt") == 1
    assert "last.ckpt of update 1 is kept" in weights_problem(trainer)


@pytest.mark.parametrize(("mode", "worst"), [("min", math.inf), ("max", -math.inf)])
def test_a_sweep_sees_the_worst_value_if_the_weights_were_never_finite(tmp_path, mode, worst):
    assert best_score(fit(tmp_path / mode, NanWeights(1), monitor="weight", mode=mode)) == worst


def test_a_sweep_sees_the_best_value_before_the_weights_became_nan(tmp_path):
    trainer = fit(tmp_path, NanWeights(3), monitor="weight")
    assert best_score(trainer) == pytest.approx(0.8)


class SignalAfter(pl.Callback):
    """Delivers SLURM's signal to `LastCheckpoint` after an update."""

    def __init__(self, update):
        self.update = update

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.update:
            trainer.checkpoint_callbacks[-1]._on_signal(signal.SIGUSR1, None)


@pytest.mark.parametrize(
    ("update", "requeued", "message"),
    [
        (1, 1, "after update 1. The checkpoint is saved: continue with resume="),
        (3, 0, "after update 3, but the weights are not finite, so last.ckpt of update 1 is kept"),
    ],
)
def test_a_signal_requeues_no_job_whose_weights_are_nan(
    update, requeued, message, tmp_path, monkeypatch, capsys
):
    jobs = []
    monkeypatch.setattr(launch, "requeue", lambda: jobs.append("job"))
    with pytest.raises(SystemExit):
        fit(tmp_path, NanWeights(3), SignalAfter(update))
    assert f"Stopped by SIGUSR1 {message}" in capsys.readouterr().out
    assert len(jobs) == requeued


def test_a_signal_to_any_process_requeues_the_job(tmp_path, monkeypatch, capsys):
    jobs = []
    monkeypatch.setattr(launch, "requeue", lambda: jobs.append("job"))
    monkeypatch.setattr(checkpoints, "max_over_processes", lambda *_: int(signal.SIGUSR1))
    with pytest.raises(SystemExit) as end:
        fit(tmp_path)
    assert end.value.code == 128 + signal.SIGUSR1
    assert "Stopped by SIGUSR1 after update 1. " in capsys.readouterr().out
    assert jobs == ["job"]
