"""A training that is killed at any moment and resumed ends with the same bits as one that is not.

`KILLS=25 pytest tests/test_resume.py` kills more often.
"""

import multiprocessing
import os
import random
import signal
import time

import pytest
import torch

import tiny

KILLS = int(os.environ.get("KILLS", "3"))


def process(stage, folder, arguments):
    torch.set_num_threads(1)  # threads that were at work before a fork are not there after it
    tiny.train(stage, folder, **arguments)


def start(stage, folder):
    """The training in a process of its own, which has loaded already what takes long to load."""
    accumulate = {"accumulate_grad_batches": 2 if stage == "dvae" else 1}
    training = multiprocessing.get_context("fork").Process(
        target=process, args=(stage, folder, accumulate)
    )
    training.start()
    return training


def trained(folder):
    """What a checkpoint says of weights, averages, moments and rates, as one flat dictionary."""
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == tiny.STEPS
    kept = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "callbacks")
    return dict(flat({name: saved[name] for name in kept}))


def flat(value, name=""):
    if isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from flat(item, f"{name}.{key}")
    elif "Checkpoint" not in name:  # paths
        yield name, value


@pytest.mark.parametrize("stage", ["dvae", "prior"])
def test_a_killed_training_ends_with_the_same_bits(stage, tmp_path):
    began = time.monotonic()
    whole = start(stage, tmp_path / "whole")
    whole.join()
    took = time.monotonic() - began
    assert whole.exitcode == 0

    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    moments, kills = random.Random(0), 0
    while kills < KILLS:
        process = start(stage, tmp_path / "killed")
        while not last.exists() and process.is_alive():
            time.sleep(0.01)
        process.join(moments.uniform(0, 0.5 * took))
        process.kill()
        process.join()
        if process.exitcode == 0:  # it had come to its end: begin again
            last.unlink()
            continue
        assert process.exitcode == -signal.SIGKILL
        assert 0 < torch.load(last, weights_only=True)["global_step"] <= tiny.STEPS
        kills += 1
    process = start(stage, tmp_path / "killed")
    process.join()
    assert process.exitcode == 0

    expected, found = trained(tmp_path / "whole"), trained(tmp_path / "killed")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, found[name]), name
        else:
            assert value == found[name], name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_what_has_been_trained(number, tmp_path, capfd):
    process = start("prior", tmp_path)
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


def test_slurms_signal_saves_and_queues_the_job_again(tmp_path, monkeypatch, capfd):
    asked = tmp_path / "asked"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {asked}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=os.pathsep)
    names = {"JOB_ID": "17", "JOB_NAME": "prior", "NTASKS": "1", "PROCID": "0", "LOCALID": "0"}
    for name, value in {**names, "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    process = start("prior", tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    while not last.exists() and process.is_alive():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGUSR1)
    process.join()
    assert process.exitcode == 128 + signal.SIGUSR1
    assert asked.read_text() == "requeue 17\n"
    assert 7 <= torch.load(last, weights_only=True)["global_step"] < tiny.STEPS
    assert not list(tmp_path.glob("**/hpc_ckpt*"))
    assert "SIGUSR1 after update" in capfd.readouterr().out
