"""A training that is killed at any moment resumes to the same bits as an uninterrupted one.

`KILLS=25 pytest tests/training/test_resume.py` kills more often. `benchmarks/kill.py` kills the
command itself.
"""

import os
import random
import resource
import signal
import sys
import time

import pytest
import pytorch_lightning as pl
import torch

from helpers import killing, tiny
from tilewright.callbacks import LastCheckpoint, UpdateBoundaryCheckpoint
from tilewright.errors import UserError

KILLS = int(os.environ.get("KILLS", "3"))


def training(stage):
    accumulate = {"accumulate_grad_batches": 2 if stage == "dvae" else 1}
    return lambda folder: tiny.train(stage, folder, **accumulate)


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("dvae", marks=pytest.mark.slow),
        pytest.param("adversarial", marks=pytest.mark.slow),
        "prior",
        "muon",
        "lora",
    ],
)
def test_a_killed_training_ends_with_the_same_bits(stage, tmp_path):
    train = training(stage)
    duration = killing.train_uninterrupted(train, tmp_path / "uninterrupted")
    rng = random.Random(0)
    moments = killing.train_with_kills(train, tmp_path / "killed", KILLS, 0.6 * duration, rng)
    assert moments.total() == KILLS
    assert killing.checkpoint_values(tmp_path / "killed")[".global_step"] == tiny.STEPS
    assert killing.differences(tmp_path / "uninterrupted", tmp_path / "killed") == []


def test_a_validation_within_an_update_delays_the_best_checkpoint(tmp_path):
    """A training that starts from it ends with the same bits."""
    best = UpdateBoundaryCheckpoint(
        tmp_path / "kept", "{step}", "validation/loss", save_top_k=-1, enable_version_counter=False
    )
    arguments = {"steps": 5, "accumulate_grad_batches": 2}
    tiny.train("dvae", tmp_path / "uninterrupted", extra_callbacks=[best], **arguments)
    last = tmp_path / "resumed" / killing.LAST
    last.parent.mkdir(parents=True)
    (tmp_path / "kept" / "step=4.ckpt").rename(last)
    assert torch.load(last, weights_only=True)["global_step"] == 4
    tiny.train("dvae", tmp_path / "resumed", **arguments)
    assert killing.differences(tmp_path / "uninterrupted", tmp_path / "resumed") == []


class FirstWeights(pl.Callback):
    """Records the weights that a training starts from."""

    def on_train_start(self, trainer, pl_module):
        self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}


def test_a_run_that_no_longer_averages_continues_from_its_trained_weights(tmp_path):
    tiny.train("prior", tmp_path, steps=9)
    saved = torch.load(tmp_path / killing.LAST, weights_only=True)
    first = FirstWeights()
    callbacks = [first, LastCheckpoint(str(tmp_path / "checkpoints"))]
    tiny.train("prior", tmp_path, steps=10, callbacks=callbacks)
    for name, value in saved["current_model_state"].items():
        torch.testing.assert_close(first.weights[name], value, rtol=0, atol=0)


class FailingValidation(pl.Callback):
    """Fails in the validation after an update, as a measurement does that runs out of memory."""

    def __init__(self, update):
        self.update = update

    def on_validation_epoch_end(self, trainer, module):
        if trainer.global_step == self.update:
            raise MemoryError


@pytest.mark.parametrize(
    ("failed", "interval", "accumulated", "saved"),
    [
        (7, 7, 1, 6),  # the first validation
        (14, 7, 1, 13),
        (16, 7, 1, 15),  # the last one
        (3, 7, 2, 3),  # within the update after the third one
        (5, 1, 1, 4),
        (2, 1, 2, 1),
    ],
)
def test_a_failing_validation_loses_one_update(failed, interval, accumulated, saved, tmp_path):
    settings = {"val_check_interval": interval, "accumulate_grad_batches": accumulated}
    settings["steps"] = 16 // accumulated
    tiny.train("prior", tmp_path / "uninterrupted", **settings)
    fails = [FailingValidation(failed)]
    with pytest.raises(MemoryError):
        tiny.train("prior", tmp_path / "failed", extra_callbacks=fails, **settings)
    assert killing.checkpoint_values(tmp_path / "failed")[".global_step"] == saved
    tiny.train("prior", tmp_path / "failed", **settings)
    assert killing.checkpoint_values(tmp_path / "failed")[".global_step"] == settings["steps"]
    assert killing.differences(tmp_path / "uninterrupted", tmp_path / "failed") == []


class CountSaves(pl.Callback):
    """Records the update of each checkpoint."""

    def __init__(self):
        self.updates = []

    def on_save_checkpoint(self, trainer, module, checkpoint):
        self.updates.append(trainer.global_step)


@pytest.mark.parametrize("limit", [1.0, 0])  # share of the validation rows
def test_checkpoints_are_written_before_validations_and_at_the_end(limit, tmp_path):
    saves = CountSaves()
    tiny.train("prior", tmp_path, steps=16, extra_callbacks=[saves], limit_val_batches=limit)
    assert saves.updates == [6, 13, 15, 16]


class SignalAfter(pl.Callback):
    """Sends SIGTERM to the run at the end of an update."""

    def __init__(self, update):
        self.update = update

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == self.update:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("update", "saved"), [(12, 12), (13, 13), (14, 15)])
def test_a_signal_before_a_validation_does_not_leave_it_out(update, saved, tmp_path):
    tiny.train("prior", tmp_path / "uninterrupted", steps=16)
    signals = [SignalAfter(update)]
    with pytest.raises(SystemExit):
        tiny.train("prior", tmp_path / "stopped", steps=16, extra_callbacks=signals)
    assert killing.checkpoint_values(tmp_path / "stopped")[".global_step"] == saved
    tiny.train("prior", tmp_path / "stopped", steps=16)
    assert killing.differences(tmp_path / "uninterrupted", tmp_path / "stopped") == []


def test_a_training_resumes_after_a_full_disk(tmp_path):
    tiny.train("prior", tmp_path / "uninterrupted", steps=16)
    tiny.train("prior", tmp_path / "stopped", steps=9)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # bytes of a file
    try:
        message = r"cannot be written .* The previous checkpoint is unchanged"
        with pytest.raises(UserError, match=message):
            tiny.train("prior", tmp_path / "stopped", steps=16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.load(tmp_path / "stopped" / killing.LAST, weights_only=True)["global_step"] == 9
    tiny.train("prior", tmp_path / "stopped", steps=16)
    assert killing.differences(tmp_path / "uninterrupted", tmp_path / "stopped") == []


def test_a_prior_resumes_with_another_accumulation(tmp_path):
    tiny.train("prior", tmp_path, steps=7, val_check_interval=7)
    tiny.train("prior", tmp_path, steps=10, val_check_interval=20, accumulate_grad_batches=4)
    saved = torch.load(tmp_path / killing.LAST, weights_only=True)
    # The update that ends at batch 8 has one batch, and the two after it have four.
    assert saved["CaptionedImages"]["rows_read"] == 4 * 16


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_a_checkpoint_and_says_how_to_resume(number, tmp_path, capfd):
    process = killing.start(training("prior"), tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    killing.wait_for_file(last, process)
    os.kill(process.pid, number)
    assert killing.join(process) == 128 + number
    step = torch.load(last, weights_only=True)["global_step"]
    assert 6 <= step < tiny.STEPS
    (line,) = (line for line in capfd.readouterr().out.splitlines() if "Stopped" in line)
    assert f"{number.name} after update {step}" in line
    assert f"resume={tmp_path}" in line


class SlowValidation(pl.Callback):
    """Waits in the second validation, after writing a file."""

    def __init__(self, file):
        self.file = file

    def on_validation_start(self, trainer, module):
        if trainer.global_step == 14:
            self.file.touch()
            time.sleep(killing.TIMEOUT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(number, tmp_path):
    waiting = tmp_path / "waiting"
    callbacks = [SlowValidation(waiting)]
    process = killing.start(
        lambda folder: tiny.train("prior", folder, extra_callbacks=callbacks), tmp_path
    )
    killing.wait_for_file(waiting, process)
    os.kill(process.pid, number)
    time.sleep(0.5)  # for the first handler
    assert process.is_alive()
    os.kill(process.pid, number)
    assert killing.join(process, timeout=10) == -number
    assert torch.load(tmp_path / killing.LAST, weights_only=True)["global_step"] == 13


class HangUp(pl.Callback):
    """Sends SIGHUP twice after the third update, as the kernel and a shell do."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)


def train_in_terminal(folder, handler):
    """Trains on a terminal that is closed while SIGHUP is handled by `handler`."""
    signal.signal(signal.SIGHUP, handler)
    primary, terminal = os.openpty()
    os.dup2(terminal, 1)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    os.close(primary)  # every write to the terminal now fails
    tiny.train("prior", folder, steps=7, extra_callbacks=[HangUp()])


def test_a_closed_terminal_ends_a_run_with_a_checkpoint(tmp_path):
    process = killing.start(lambda folder: train_in_terminal(folder, signal.SIG_DFL), tmp_path)
    assert killing.join(process) == 128 + signal.SIGHUP
    assert torch.load(tmp_path / killing.LAST, weights_only=True)["global_step"] == 3


def test_a_run_under_nohup_ignores_a_closed_terminal(tmp_path):
    process = killing.start(lambda folder: train_in_terminal(folder, signal.SIG_IGN), tmp_path)
    assert killing.join(process) == 0
    assert torch.load(tmp_path / killing.LAST, weights_only=True)["global_step"] == 7


class SignalGroup(pl.Callback):
    """Sends a signal to the run's process group in the second validation, as a terminal does."""

    def __init__(self, number):
        self.number = number

    def on_validation_start(self, trainer, module):
        if trainer.global_step == 14:
            os.killpg(0, self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_dataloader_workers_ignore_a_signal_to_the_group(number, tmp_path, slurm, capfd):
    def train(folder):
        os.setpgrp()
        tiny.train("prior", folder, workers=1, extra_callbacks=[SignalGroup(number)])

    process = killing.start(train, tmp_path)
    assert killing.join(process) == 128 + number
    assert torch.load(tmp_path / killing.LAST, weights_only=True)["global_step"] == 15
    assert slurm.exists() == (number == signal.SIGUSR1)
    assert "Handling" not in capfd.readouterr().err  # Lightning's handler, in a worker


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Imitates a SLURM job, and returns the file that records the calls of scontrol."""
    calls = tmp_path / "calls"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=os.pathsep)
    names = {"JOB_ID": "17", "JOB_NAME": "prior", "NTASKS": "1", "PROCID": "0", "LOCALID": "0"}
    for name, value in {**names, "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return calls


def test_sigusr1_under_slurm_saves_and_requeues_the_job(tmp_path, slurm, capfd):
    process = killing.start(training("prior"), tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    killing.wait_for_file(last, process)
    os.kill(process.pid, signal.SIGUSR1)
    assert killing.join(process) == 128 + signal.SIGUSR1
    assert slurm.read_text() == "requeue 17\n"
    assert 6 <= torch.load(last, weights_only=True)["global_step"] < tiny.STEPS
    assert not list(tmp_path.glob("**/hpc_ckpt*"))  # Lightning's own checkpoint
    assert "SIGUSR1 after update" in capfd.readouterr().out


def test_a_hanging_training_fails_instead_of_waiting_forever(tmp_path):
    process = killing.start(lambda folder: signal.pause(), tmp_path)
    with pytest.raises(AssertionError, match=r"still running after 1 s"):
        killing.join(process, timeout=1)
    assert not process.is_alive()
