"""A training that is killed at any moment and resumed ends with the same bits as one that is not.

`KILLS=25 pytest tests/test_resume.py` kills more often; `benchmarks/kill.py` kills the command.
"""

import os
import random
import resource
import signal
import time

import pytest
import pytorch_lightning as pl
import torch

from helpers import killing, tiny
from tilewright.callbacks.checkpoints import WholeUpdateCheckpoint
from tilewright.errors import UserError

KILLS = int(os.environ.get("KILLS", "3"))


def training(stage):
    accumulate = {"accumulate_grad_batches": 2 if stage == "dvae" else 1}
    return lambda folder: tiny.train(stage, folder, **accumulate)


@pytest.mark.parametrize("stage", ["dvae", "prior", "muon"])
def test_a_killed_training_ends_with_the_same_bits(stage, tmp_path):
    train = training(stage)
    took = killing.whole(train, tmp_path / "whole")
    moments = random.Random(0)
    found = killing.killed(train, tmp_path / "killed", KILLS, 0.6 * took, moments)
    assert found.total() == KILLS
    assert killing.trained(tmp_path / "killed")[".global_step"] == tiny.STEPS
    assert killing.differences(tmp_path / "whole", tmp_path / "killed") == []


def test_the_best_checkpoint_is_one_to_go_on_from(tmp_path):
    """Also where its validation falls between the two batches of an update."""
    best = WholeUpdateCheckpoint(
        tmp_path / "kept", "best", "validation/loss", enable_version_counter=False
    )
    tiny.train("dvae", tmp_path / "whole", steps=5, watch=[best], accumulate_grad_batches=2)
    last = tmp_path / "again" / killing.LAST
    last.parent.mkdir(parents=True)
    (tmp_path / "kept" / "best.ckpt").rename(last)
    assert torch.load(last, weights_only=True)["global_step"] == 4
    tiny.train("dvae", tmp_path / "again", steps=5, accumulate_grad_batches=2)
    assert killing.differences(tmp_path / "whole", tmp_path / "again") == []


def test_a_training_goes_on_when_a_full_disk_has_room_again(tmp_path):
    tiny.train("prior", tmp_path / "whole", steps=16)
    tiny.train("prior", tmp_path / "stopped", steps=9)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # bytes of a file
    try:
        with pytest.raises(UserError, match=r"cannot be written .* the one before it is still"):
            tiny.train("prior", tmp_path / "stopped", steps=16)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.load(tmp_path / "stopped" / killing.LAST, weights_only=True)["global_step"] == 9
    tiny.train("prior", tmp_path / "stopped", steps=16)
    assert killing.differences(tmp_path / "whole", tmp_path / "stopped") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_what_has_been_trained(number, tmp_path, capfd):
    process = killing.start(training("prior"), tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    while not last.exists():  # it is training by then
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == 128 + number
    step = torch.load(last, weights_only=True)["global_step"]
    assert 7 <= step < tiny.STEPS
    (line,) = (line for line in capfd.readouterr().out.splitlines() if "Stopped" in line)
    assert f"{number.name} after update {step}" in line
    assert f"resume={tmp_path}" in line


class ToAll(pl.Callback):
    """A signal to all processes of the run, as a terminal sends it, in the second validation."""

    def __init__(self, number):
        self.number = number

    def on_validation_start(self, trainer, module):
        if trainer.global_step == 14:
            os.killpg(0, self.number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_workers_leave_a_signal_to_all_to_the_training(number, tmp_path, slurm, capfd):
    def train(folder):
        os.setpgrp()
        tiny.train("prior", folder, workers=1, watch=[ToAll(number)])

    process = killing.start(train, tmp_path)
    process.join()
    assert process.exitcode == 128 + number
    assert torch.load(tmp_path / killing.LAST, weights_only=True)["global_step"] == 15
    assert slurm.exists() == (number == signal.SIGUSR1)
    assert "Handling" not in capfd.readouterr().err  # Lightning's answer, by a worker


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A file with what SLURM, which seems to have started this process, was asked."""
    asked = tmp_path / "asked"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=os.pathsep)
    names = {"JOB_ID": "17", "JOB_NAME": "prior", "NTASKS": "1", "PROCID": "0", "LOCALID": "0"}
    for name, value in {**names, "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return asked


def test_slurms_signal_saves_and_queues_the_job_again(tmp_path, slurm, capfd):
    process = killing.start(training("prior"), tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    while not last.exists() and process.is_alive():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGUSR1)
    process.join()
    assert process.exitcode == 128 + signal.SIGUSR1
    assert slurm.read_text() == "requeue 17\n"
    assert 7 <= torch.load(last, weights_only=True)["global_step"] < tiny.STEPS
    assert not list(tmp_path.glob("**/hpc_ckpt*"))
    assert "SIGUSR1 after update" in capfd.readouterr().out
