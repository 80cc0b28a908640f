"""Two processes train what one trains: the same losses, figures and checkpoints, in one folder."""

import os
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from helpers import tiny
from helpers.processes import figures, run, train
from tilewright.callbacks.board import ONCE
from tilewright.distributed import launch
from tilewright.distributed.fsdp import FullyShardedStrategy
from tilewright.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("stage", ["dvae", "prior", "ranker"])
def test_two_processes_train_what_one_trains(stage, tmp_path):
    for count in (1, 2):
        train(stage, tmp_path / str(count), count, steps=20, noise=False)
    alone, together = figures(tmp_path / "1"), figures(tmp_path / "2")
    assert alone.keys() == together.keys()
    assert {step for step, name in alone if name == "train/loss"} == set(range(20))
    assert {step for step, name in alone if name == "validation/loss"} == {6, 13}
    # Adam turns the rounding of small gradients into whole steps.
    rel = 1e-4 if stage == "ranker" else 1e-5
    for key, value in alone.items():
        assert together[key] == pytest.approx(value, rel=rel, abs=1e-6), key


def test_a_checkpoint_of_two_is_read_by_one_and_the_reverse(tmp_path):
    for first, second in ((1, 1), (1, 2), (2, 1)):
        folder = tmp_path / f"{first}{second}"
        train("prior", folder, first, steps=9, noise=False)
        (folder / "metrics.csv").unlink()
        train("prior", folder, second, steps=16, noise=False)
    alone = figures(tmp_path / "11")
    assert (15, "train/loss") in alone
    for name in ("12", "21"):
        mixed = figures(tmp_path / name)
        assert alone.keys() == mixed.keys()
        for key, value in alone.items():
            assert mixed[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key


def test_processes_share_an_epoch_and_draw_their_own_noise(tmp_path):
    train("prior", tmp_path, 2, steps=11)  # of 4 rows each: two epochs of 22
    notes = [torch.load(tmp_path / f"{rank}.notes") for rank in (0, 1)]
    captions = [
        caption
        for step in range(11)
        for note in notes
        for caption in note["captions"][2 * step : 2 * step + 2]
    ]
    for epoch in (captions[: tiny.ROWS], captions[tiny.ROWS :]):
        assert sorted(int(caption.split()[1]) for caption in epoch) == list(range(tiny.ROWS))
    assert not set(notes[0]["noise"]) & set(notes[1]["noise"])


@pytest.mark.parametrize("strategy", ["ddp", FullyShardedStrategy], ids=["ddp", "fsdp"])
def test_gathered_gradients_are_those_of_one_process(strategy, tmp_path):
    arguments = {"steps": 10, "noise": False, "accumulate_grad_batches": 2}
    train("prior", tmp_path / "1", 1, **arguments)
    train("prior", tmp_path / "2", 2, strategy, **arguments)
    alone, together = figures(tmp_path / "1"), figures(tmp_path / "2")
    assert alone.keys() == together.keys()
    assert (9, "train/loss") in alone
    for key, value in alone.items():
        assert together[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key


@pytest.mark.parametrize("strategy", ["ddp", FullyShardedStrategy], ids=["ddp", "fsdp"])
def test_cutmix_negatives_are_gathered_from_all_processes(strategy, tmp_path, monkeypatch):
    """Uses negatives that depend on one image only, because processes mix different images."""

    def flip_left_half(images):
        half = images.shape[-1] // 2
        return torch.cat([images.flip(-1)[..., :half], images[..., half:]], dim=-1)

    monkeypatch.setattr("tilewright.ranker.module.make_cutmix_negatives", flip_left_half)
    train("ranker", tmp_path / "1", 1, steps=20)
    train("ranker", tmp_path / "2", 2, strategy, steps=20)
    train("ranker", tmp_path / "without", 1, steps=20, noise=False)
    alone, together = figures(tmp_path / "1"), figures(tmp_path / "2")
    assert alone.keys() == together.keys()
    for key, value in alone.items():
        assert together[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key
    first = (0, "train/loss")
    assert alone[first] > figures(tmp_path / "without")[first] + 0.1


def configuration(**trainer):
    trainer = {"devices": "auto", "accelerator": "cpu", **trainer}
    return OmegaConf.create({"trainer": trainer, "data": {"batch_size": 32}})


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 2), (3, 2), (6, 4), (64, 4)])
def test_a_process_for_each_core_that_gets_enough_of_a_batch(monkeypatch, cores, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert launch.devices(configuration()) == expected
    assert launch.devices(configuration(devices=3)) == 3


def test_a_batch_that_cannot_be_shared_is_one_line():
    launch.check_share(32, 2)
    with pytest.raises(UserError, match=r"data\.batch_size=32 .* by 3"):
        launch.check_share(32, 3)


SMALL = [
    "stage=dvae",
    "run_name='a, b=c'",
    "trainer=ddp",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
    "data.source.train=40",
    "data.source.validation=8",
    "data.source.zeroshot=8",
    "data.batch_size=8",
    "trainer.val_check_interval=2",
    "~callbacks.frechet",
]


@pytest.mark.slow
def test_the_command_makes_one_folder_and_torchrun_goes_on_in_it(tmp_path):
    logs = tmp_path / "logs"
    places = [f"paths.data={tmp_path / 'data'}", f"paths.logs={logs}"]
    said = run(sys.executable, "src/train.py", *SMALL, *places, "trainer.max_steps=2")
    (folder,) = (path for path in (logs / "dvae").iterdir() if not path.is_symlink())
    assert folder.name == "a, b=c"
    assert (logs / "dvae" / "latest").resolve() == folder
    events = sorted(path.suffix == ONCE for path in folder.glob("events.*"))
    assert events == [False, True]  # one process writes them: figures, and what is said once
    assert {path.name for path in folder.glob("checkpoints/*")} == {"best.ckpt", "last.ckpt"}
    for line in ("; to watch", "Trained", "step      2/2"):
        assert said.count(line) == 1, said

    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = ["stage=dvae", "resume=true", "trainer.max_steps=4", *places]
    said = run(*launch, "src/train.py", *words)
    assert said.count("step      4/4") == 1, said
    assert {path.name for path in (logs / "dvae").iterdir()} == {"a, b=c", "latest"}
    config = OmegaConf.load(folder / "config.yaml")
    assert config.trainer.max_steps == config.model.learning_rate.then.steps == 4
