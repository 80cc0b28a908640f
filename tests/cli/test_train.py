"""What train leaves, and how a run goes on."""

import csv
import subprocess
import sys

import pytest

from helpers.process import FRECHET, ROOT, SMALL, run, step

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("stage", ["dvae", "prior"])
def test_a_run_is_a_folder(trained, stage):
    run = getattr(trained, stage)
    for file in ("config.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.csv"):
        assert (run / file).is_file()
    assert list(run.glob("events.out.tfevents.*"))
    assert "${" not in (run / "config.yaml").read_text()
    assert step(run / "checkpoints" / "last.ckpt") == 6
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert (run.parent / "latest").resolve() == run.resolve()
    said = "".join(trained.said[stage].split())  # wherever the terminal breaks its lines
    assert f"Training{run}" in said


def test_a_training_whose_output_nobody_reads_goes_on(tmp_path):
    words = [sys.executable, str(ROOT / "src" / "train.py"), "stage=dvae", *SMALL, FRECHET]
    words += [f"paths.data={tmp_path / 'data'}", f"paths.logs={tmp_path / 'logs'}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=ROOT, **pipes) as process:
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 0, said
    run = tmp_path / "logs" / "dvae" / "latest"
    assert step(run / "checkpoints" / "last.ckpt") == 6


def test_a_prior_has_all_that_it_needs(trained):
    assert (trained.prior / "tokenizer.json").is_file()
    assert (trained.prior / "dvae" / "config.json").is_file()
    assert (trained.prior / "dvae" / "model.safetensors").is_file()


def test_no_folder_of_hydras(trained):
    folders = {path.name for path in (trained.folder / "logs").iterdir()}
    assert folders == {"dvae", "prior", "ranker"}
    assert not (ROOT / "outputs").exists()


def test_a_ranker_shows_what_it_finds(trained):
    with (trained.ranker / "metrics.csv").open() as file:
        names = csv.DictReader(file).fieldnames
    assert {"retrieval/caption_to_image_r@1", "retrieval/image_to_caption_r@10"} <= set(names)


def test_a_name_is_taken_once(copied):
    done = run(copied.folder, "train", "stage=dvae", "run_name=first", *SMALL, status=1)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert f"resume={copied.dvae}" in line


def test_a_callback_that_is_null_is_left_out(copied):
    alone = ["run_name=alone", "callbacks.best=null", "callbacks.reconstructions=null"]
    run(copied.folder, "train", "stage=dvae", *alone, FRECHET, *SMALL)
    folder = copied.dvae.parent / "alone"
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]
    run(copied.folder, "eval", "metric=reconstruction", f"run={folder}", "device=cpu")


def steps_of(run):
    """Steps of the validation's figures in metrics.csv."""
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [int(row["step"]) + 1 for row in rows if row.get("validation/loss")]


def test_resume_goes_on_in_the_same_folder(trained, copied):
    runs = set(copied.dvae.parent.iterdir())
    assert steps_of(copied.dvae) == [3, 6]
    run(copied.folder, "train", "stage=dvae", f"resume={copied.dvae}", "trainer.max_steps=9")
    assert set(copied.dvae.parent.iterdir()) == runs
    assert step(copied.dvae / "checkpoints" / "last.ckpt") == 9
    assert step(trained.dvae / "checkpoints" / "last.ckpt") == 6
    assert steps_of(copied.dvae) == [3, 6, 9]


def test_resume_true_takes_the_newest_and_keeps_its_groups(copied):
    done = run(copied.folder, "train", "stage=prior", "resume=true", "model=dvae_small", status=1)
    (line,) = done.stderr.splitlines()
    assert "model=prior_modern" in line
    run(copied.folder, "train", "stage=prior", "resume=true", "trainer.max_steps=7")
    assert step(copied.prior / "checkpoints" / "last.ckpt") == 7


def test_a_sweep_makes_a_run_of_each_job(copied):
    arguments = [word for word in SMALL if not word.startswith("trainer.max_steps")]
    run(
        copied.folder,
        "train",
        "--multirun",
        "stage=dvae",
        "run_name=sweep",
        "trainer.max_steps=2,3",
        "trainer.val_check_interval=2",
        FRECHET,
        *(word for word in arguments if not word.startswith("trainer.val_check_interval")),
    )
    for number, steps in enumerate((2, 3)):
        folder = copied.folder / "logs" / "dvae" / f"sweep_{number}"
        assert step(folder / "checkpoints" / "last.ckpt") == steps
