"""Two DDP processes train what one process trains, in one folder."""

import os
import sys

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning.plugins.environments import SLURMEnvironment

from helpers import tiny
from helpers.multiprocess import logged_metrics, run, train
from helpers.probes import SameBuffers, flip_left_half
from tilewright.callbacks.tensorboard import OVERVIEW_SUFFIX
from tilewright.distributed import FullyShardedStrategy, launch
from tilewright.distributed.sharded_checkpoint import read_checkpoint
from tilewright.errors import UserError
from tilewright.runs import follow_latest
from tilewright.training import Trainer


def assert_close(expected, actual, rel=1e-5):
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        assert actual[key] == pytest.approx(value, rel=rel, abs=1e-6), key


@pytest.mark.parametrize("stage", ["dvae", "vq", "fsq", "prior", "ranker"])
def test_two_processes_train_what_one_trains(stage, trained):
    checks = {"extra_callbacks": [SameBuffers()]}
    expected = logged_metrics(trained(stage, steps=20, noise=False))
    actual = logged_metrics(trained(stage, 2, steps=20, noise=False, **checks))
    assert {step for step, name in expected if name == "train/loss"} == set(range(20))
    assert {step for step, name in expected if name == "validation/loss"} >= {6, 13}
    # Adam turns rounding errors of small gradients into whole steps.
    assert_close(expected, actual, rel=1e-4 if stage == "ranker" else 1e-5)


def test_two_processes_train_a_discriminator_as_one_process_does(trained):
    """Compares the first updates: a discriminator soon multiplies rounding errors."""
    expected = logged_metrics(trained("adversarial", steps=6, noise=False))
    actual = logged_metrics(trained("adversarial", 2, steps=6, noise=False))
    assert {step for step, name in expected if name == "train/discriminator"} == {3, 4, 5}
    assert_close(expected, actual, rel=1e-3)


@pytest.mark.parametrize(("first", "second"), [(1, 2), (2, 1)])
def test_a_run_resumes_with_another_number_of_processes(first, second, trained, tmp_path):
    train("prior", tmp_path, first, steps=9, noise=False)
    (tmp_path / "metrics.csv").unlink()
    train("prior", tmp_path, second, steps=16, noise=False)
    uninterrupted = logged_metrics(trained("prior", steps=20, noise=False))
    expected = {key: value for key, value in uninterrupted.items() if 9 <= key[0] < 16}
    assert {step for step, name in expected if name == "train/loss"} == set(range(9, 16))
    # The stretch also ends with a validation, which the uninterrupted training does not have.
    resumed = logged_metrics(tmp_path)
    last = {key for key in resumed if key[0] == 15 and key[1].startswith("validation/")}
    assert last
    assert_close(expected, {key: value for key, value in resumed.items() if key not in last})


def test_processes_share_an_epoch_and_draw_different_noise(tmp_path):
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


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", FullyShardedStrategy], ids=["ddp", "fsdp"])
def test_accumulated_gradients_equal_those_of_one_process(strategy, trained):
    arguments = {"steps": 10, "noise": False, "accumulate_grad_batches": 2}
    expected = logged_metrics(trained("prior", **arguments))
    actual = logged_metrics(trained("prior", 2, strategy, workers=1, **arguments))
    assert (9, "train/loss") in expected
    assert_close(expected, actual)


def test_an_update_of_two_batches_equals_that_of_one_batch(trained):
    """The captions have unequal lengths, so the mean over all text is not the mean of two means."""
    one = trained("prior", steps=8, noise=False, batch_size=8)
    two = trained("prior", steps=8, noise=False, accumulate_grad_batches=2)
    expected, actual = (
        read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"] for folder in (one, two)
    )
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", FullyShardedStrategy], ids=["ddp", "fsdp"])
def test_cutmix_negatives_are_gathered_from_all_processes(strategy, tmp_path):
    patches = {"tilewright.ranker.module.make_cutmix_negatives": flip_left_half}
    flipped = {"steps": 20, "patches": patches}
    train("ranker", tmp_path / "1", 1, **flipped)
    train("ranker", tmp_path / "2", 2, strategy, **flipped)
    train("ranker", tmp_path / "without", 1, steps=1, noise=False)
    alone = logged_metrics(tmp_path / "1")
    assert_close(alone, logged_metrics(tmp_path / "2"))
    first = (0, "train/loss")
    assert alone[first] > logged_metrics(tmp_path / "without")[first] + 0.1


def configuration(**trainer):
    trainer = {"devices": "auto", "accelerator": "cpu", **trainer}
    return OmegaConf.create({"trainer": trainer, "data": {"batch_size": 32}})


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (2, 2), (3, 2), (6, 4), (64, 4)])
def test_auto_starts_a_process_per_core_with_at_least_8_rows_each(monkeypatch, cores, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert launch.devices(configuration()) == expected
    assert launch.devices(configuration(devices=3)) == 3


def test_a_batch_that_cannot_be_divided_is_a_user_error():
    launch.check_batch_size(32, 2)
    with pytest.raises(UserError, match=r"data\.batch_size=32.* by 3 processes"):
        launch.check_batch_size(32, 3)


SMALL = [
    "stage=dvae",
    "run_name=a, b=c",
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
def test_the_command_creates_one_folder_and_torchrun_resumes_in_it(tmp_path):
    logs = tmp_path / "logs"
    paths = [f"paths.data={tmp_path / 'data'}", f"paths.logs={logs}"]
    output = run(sys.executable, "src/train.py", *SMALL, *paths, "trainer.max_steps=2")
    (folder,) = (path for path in (logs / "dvae").iterdir() if path.is_dir())
    assert folder.name == "a, b=c"
    assert follow_latest(logs / "dvae" / "latest") == folder
    events = sorted(path.suffix == OVERVIEW_SUFFIX for path in folder.glob("events.*"))
    assert events == [False, True]  # one process writes them
    assert {path.name for path in folder.glob("checkpoints/*")} == {"best.ckpt", "last.ckpt"}
    for line in ("; to watch", "Trained", "step      2/2"):
        assert output.count(line) == 1, output

    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = ["stage=dvae", "resume=true", "trainer.max_steps=4", *paths]
    output = run(*launch, "src/train.py", *words)
    assert output.count("step      4/4") == 1, output
    assert {path.name for path in (logs / "dvae").iterdir()} == {"a, b=c", "latest"}
    config = OmegaConf.load(folder / "config.yaml")
    assert config.trainer.max_steps == config.model.learning_rate.then.steps == 4


def test_a_launcher_of_several_processes_needs_a_trainer_of_several(monkeypatch):
    config = OmegaConf.create({"trainer": {"strategy": "auto", "num_nodes": 1, "devices": 1}})
    launch.check_launch(config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for needs_name in (True, False):  # of a new run, and of a resumed one
        with pytest.raises(UserError, match="started 2 processes, and the trainer has one"):
            launch.check_launch(config, needs_name)


def test_several_nodes_without_a_launcher_are_refused_instead_of_waiting(monkeypatch):
    for name in ("MASTER_ADDR", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    launch.check_nodes(Trainer(accelerator="cpu", logger=False))
    with pytest.raises(UserError, match=r"trainer\.num_nodes=2 needs a launcher"):
        launch.check_nodes(Trainer(accelerator="cpu", num_nodes=2, logger=False))
    monkeypatch.setenv("NODE_RANK", "0")
    launch.check_nodes(Trainer(accelerator="cpu", num_nodes=2, logger=False))


def test_nodes_of_slurm_and_torchrun_are_accepted(monkeypatch):
    monkeypatch.delenv("NODE_RANK", raising=False)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(SLURMEnvironment, "detect", staticmethod(lambda: True))
        for name, value in {
            "NTASKS": 2,
            "NTASKS_PER_NODE": 1,
            "PROCID": 0,
            "LOCALID": 0,
            "NODEID": 0,
        }.items():
            patch.setenv(f"SLURM_{name}", str(value))
        launch.check_nodes(Trainer(accelerator="cpu", devices=1, num_nodes=2, logger=False))
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    launch.check_nodes(Trainer(accelerator="cpu", devices=1, num_nodes=2, logger=False))
