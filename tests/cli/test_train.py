"""Files that a training leaves, and resuming it."""

import csv
import math
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from helpers.command import ROOT, SMALL, command, fail, run, step
from tilewright import runs
from tilewright.callbacks import OverfittingCheck
from tilewright.data import CaptionedImages
from tilewright.distributed import launch
from tilewright.dvae.module import DiscreteVAEModule

NO_FRECHET = "~callbacks.frechet"


@pytest.mark.parametrize("stage", ["dvae", "prior"])
def test_run_folder_has_the_documented_files(trained, stage):
    run = getattr(trained, stage)
    for file in ("config.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.csv"):
        assert (run / file).is_file()
    assert list(run.glob("events.out.tfevents.*"))
    assert "${" not in (run / "config.yaml").read_text()
    assert step(run / "checkpoints" / "last.ckpt") == 6
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert runs.follow_latest(run.parent / "latest") == run
    stdout = "".join(trained.stdout[stage].split())  # wherever rich breaks the lines
    assert f"Training{run}" in stdout


def test_run_that_was_killed_before_its_first_checkpoint_starts_over(copied):
    shutil.rmtree(copied.prior / "checkpoints")
    resumed = fail(copied, "train", "stage=prior", f"resume={copied.prior}")
    assert "start it again with run_name=first" in resumed
    run(copied, "train", "stage=prior", "run_name=first", "~callbacks.frechet", *SMALL)
    with (copied.prior / "metrics.csv").open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["validation/loss"]]
    assert steps == [3, 6]


def test_resume_from_a_checkpoint_that_does_not_fit_keeps_the_configuration(copied):
    config, last = copied.dvae / "config.yaml", copied.dvae / "checkpoints" / "last.ckpt"
    before = config.read_text()
    torch.save({**torch.load(last, weights_only=True), "state_dict": {}}, last)
    line = fail(copied, "train", "stage=dvae", "resume=true", "trainer.max_steps=9")
    assert "does not fit the network of this version (Missing key" in line
    assert config.read_text() == before


def test_a_requeued_job_without_a_name_does_not_start_over(trained, monkeypatch):
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert "without run_name=NAME it would start a new run" in fail(trained, "train", "stage=dvae")


def start(home, monkeypatch, *arguments):
    """Returns the configuration and the checkpoint with which a command would train."""
    started = []
    monkeypatch.setattr("tilewright.cli.train.train", lambda *final: started.append(final))
    run(home, "train", *arguments)
    return started[0]


def test_a_requeued_job_continues_from_its_last_checkpoint(copied, monkeypatch):
    best = copied.dvae / "checkpoints" / "best.ckpt"
    settings = ["stage=dvae", f"resume={best}", "trainer.max_steps=9"]
    assert start(copied, monkeypatch, *settings)[1] == best
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    config, checkpoint = start(copied, monkeypatch, *settings)
    assert checkpoint == best.with_name("last.ckpt")
    assert config.trainer.max_steps == 9


def test_a_requeued_prior_uses_its_own_copy_of_the_dvae(copied, monkeypatch):
    shutil.rmtree(copied.dvae)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    settings = ["stage=prior", "run_name=first", f"dvae={copied.dvae}", *SMALL]
    config, checkpoint = start(copied, monkeypatch, *settings)
    assert config.dvae == str(copied.prior / "dvae")
    assert config.run == str(copied.prior)
    assert checkpoint == copied.prior / "checkpoints" / "last.ckpt"


def test_slurms_signal_before_the_first_update_requeues_the_job(home, monkeypatch):
    """SLURM may send it while a training encodes its images."""
    jobs = []
    monkeypatch.setattr(launch, "is_under_slurm", lambda: True)
    monkeypatch.setattr(launch, "requeue", lambda: jobs.append("job"))
    monkeypatch.setattr(
        CaptionedImages, "prepare_data", lambda data: os.kill(os.getpid(), signal.SIGUSR1)
    )
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        ended = command("train", ["stage=dvae", "run_name=first", NO_FRECHET, *SMALL], home)
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert ended == 128 + signal.SIGUSR1
    assert jobs == ["job"]
    assert not runs.has_checkpoint(home.dvae)


@pytest.mark.slow
def test_training_continues_when_nobody_reads_its_output(home):
    command = [sys.executable, str(ROOT / "src" / "train.py"), "stage=dvae", *SMALL, NO_FRECHET]
    command += [f"paths.data={home.data}", f"paths.logs={home.logs}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        process.stdout.readline()
        process.stdout.close()
        stderr = process.stderr.read()
    assert process.returncode == 0, stderr
    assert step(runs.follow_latest(home.logs / "dvae" / "latest/checkpoints/last.ckpt")) == 6


def test_prior_run_holds_its_tokenizer_and_dvae(trained):
    assert (trained.prior / "tokenizer.json").is_file()
    assert (trained.prior / "dvae" / "config.json").is_file()
    assert (trained.prior / "dvae" / "model.safetensors").is_file()


def test_hydra_makes_no_folders(trained):
    assert {path.name for path in trained.logs.iterdir()} == {"dvae", "prior", "ranker"}
    assert not (ROOT / "outputs").exists()


def test_ranker_logs_recall(trained):
    with (trained.ranker / "metrics.csv").open() as file:
        names = csv.DictReader(file).fieldnames
    assert {"retrieval/caption_to_image_r@1", "retrieval/image_to_caption_r@10"} <= set(names)


def test_run_name_can_be_used_only_once(copied):
    line = fail(copied, "train", "stage=dvae", "run_name=first", *SMALL)
    assert f"resume={copied.dvae}" in line


def test_a_run_without_a_checkpoint_is_not_the_latest(copied, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("tilewright.cli.train.fit", interrupt)
    assert command("train", ["stage=dvae", "run_name=second", NO_FRECHET, *SMALL], copied) == 130
    latest = copied.dvae.parent / "latest"
    assert (copied.dvae.parent / "second" / "config.yaml").is_file()
    assert runs.follow_latest(latest) == copied.dvae


def test_a_run_shorter_than_its_validation_interval_validates_at_its_end(home):
    shorter = [text for text in SMALL if "val_check_interval" not in text]
    changes = ["run_name=first", "trainer.val_check_interval=100", NO_FRECHET, *shorter]
    out = run(home, "train", "stage=dvae", *changes)
    assert "trainer.val_check_interval=100 batches is more than the run has" in out
    assert "step      6/6" in out
    for name in ("last", "best"):
        assert step(home.dvae / "checkpoints" / f"{name}.ckpt") == 6


def test_a_run_that_stops_early_names_the_setting_and_can_continue(copied, monkeypatch):
    update = OverfittingCheck._update
    monkeypatch.setattr(OverfittingCheck, "_update", lambda *args: update(*args) or True)
    settings = ["run_name=early", "callbacks.overfitting.stop=true", NO_FRECHET]
    out = run(copied, "train", "stage=dvae", *settings, *SMALL)
    folder = copied.dvae.parent / "early"
    more = f"resume={folder} callbacks.overfitting.stop=false"
    assert (
        f"Stopped after update 3 of 6 by callbacks.overfitting.stop=true: continue with {more}\n"
    ) in out
    assert step(folder / "checkpoints" / "last.ckpt") == 3
    run(copied, "eval", "metric=reconstruction", "metric.frechet=false", f"run={folder}")
    assert "Stopped" not in run(copied, "train", "stage=dvae", *more.split(), NO_FRECHET)
    assert step(folder / "checkpoints" / "last.ckpt") == 6


@pytest.mark.parametrize("stop", ["true", "false"])
def test_a_run_whose_weights_become_nan_names_the_checkpoint_before(stop, copied, monkeypatch):
    training_step = DiscreteVAEModule.training_step

    def diverge(module, batch, index):
        return training_step(module, batch, index) * (math.nan if module.global_step == 4 else 1)

    monkeypatch.setattr(DiscreteVAEModule, "training_step", diverge)
    settings = [f"run_name=nan_{stop}", f"callbacks.health.stop={stop}", NO_FRECHET]
    out = run(copied, "train", "stage=dvae", *settings, *SMALL)
    folder = copied.dvae.parent / f"nan_{stop}"
    ends = {
        "true": "Stopped after update 5 of 6 by callbacks.health.stop=true: ",
        "false": f"Trained {folder}, but ",
    }
    problem = "the weights are not finite, so last.ckpt of update 2 is kept. "
    advice = f"continue with resume={folder}, and lower model.learning_rate."
    (line,) = (line for line in out.splitlines() if line.startswith(ends[stop] + problem))
    assert advice in line
    monkeypatch.undo()
    run(copied, "train", "stage=dvae", f"resume={folder}", "model.learning_rate.then.start=1e-4")
    assert step(folder / "checkpoints" / "last.ckpt") == 6


def test_callback_set_to_null_is_left_out(copied):
    changes = ["run_name=alone", "callbacks.best=null", "callbacks.reconstructions=null"]
    run(copied, "train", "stage=dvae", *changes, NO_FRECHET, *SMALL)
    folder = copied.dvae.parent / "alone"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]
    run(copied, "eval", "metric=reconstruction", "metric.frechet=false", f"run={folder}")


def validated_steps(run):
    """Returns the numbers of updates at which metrics.csv has a validation loss."""
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [int(row["step"]) for row in rows if row.get("validation/loss")]


def test_resume_continues_in_the_same_folder(trained, copied):
    runs = set(copied.dvae.parent.iterdir())
    assert validated_steps(copied.dvae) == [3, 6]
    more = ["trainer.max_steps=9", NO_FRECHET]
    run(copied, "train", "stage=dvae", f"resume={copied.dvae}", *more)
    assert set(copied.dvae.parent.iterdir()) == runs
    assert step(copied.dvae / "checkpoints" / "last.ckpt") == 9
    assert step(trained.dvae / "checkpoints" / "last.ckpt") == 6
    assert validated_steps(copied.dvae) == [3, 6, 9]


def test_resume_true_takes_the_newest_run_and_keeps_its_groups(copied):
    line = fail(copied, "train", "stage=prior", "resume=true", "model=dvae_small")
    assert "model=prior_modern" in line
    run(copied, "train", "stage=prior", "resume=true", "trainer.max_steps=7")
    assert step(copied.prior / "checkpoints" / "last.ckpt") == 7


def test_multirun_makes_a_run_of_each_job(copied):
    changed = ("trainer.max_steps", "trainer.val_check_interval")
    kept = [word for word in SMALL if not word.startswith(changed)]
    lengths = ["trainer.max_steps=2,3", "trainer.val_check_interval=2"]
    arguments = ["stage=dvae", "run_name=sweep", *lengths, NO_FRECHET, *kept]
    run(copied, "train", *arguments, "--multirun")
    for index, steps in enumerate((2, 3)):
        folder = copied.logs / "dvae" / f"sweep_{index}"
        assert step(folder / "checkpoints" / "last.ckpt") == steps


def test_a_run_that_another_process_trains_is_refused(copied):
    with runs.lock(copied.dvae):
        line = fail(copied, "train", "stage=dvae", "resume=true", "trainer.max_steps=9")
    assert f"another process is training {copied.dvae}: wait for its end" in line
    assert step(copied.dvae / "checkpoints" / "last.ckpt") == 6


def test_two_starts_with_one_name_train_one_run(home):
    """The second start checks the name before the first one has written the folder."""
    run_folder = home.logs / "dvae" / "same"
    with runs.lock(run_folder):
        line = fail(home, "train", "stage=dvae", "run_name=same", NO_FRECHET, *SMALL)
        assert "choose another run_name" in line
    assert not run_folder.exists()  # neither of them has written a configuration
