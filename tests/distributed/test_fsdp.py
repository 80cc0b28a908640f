"""Sharded weights: two processes train what one trains, and each reads what the others wrote."""

import sys
from functools import partial
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.distributed.tensor import DTensor

from helpers import tiny
from helpers.processes import figures, run, train
from tilewright import runs
from tilewright.callbacks.ema import AveragedWeights
from tilewright.distributed import sharded_checkpoint
from tilewright.distributed.fsdp import FullyShardedStrategy, gathered
from tilewright.errors import UserError
from tilewright.pipeline import TextToImage

IN_SHARDS = partial(FullyShardedStrategy, sharded_checkpoints=True)
TWO_COPIES = partial(IN_SHARDS, copies=2)


# Muon makes matrices orthogonal in bf16, whose sums depend on how they are cut; and Adam turns the
# rounding of small gradients into whole steps.
CLOSE = {"muon": 2e-3, "ranker": 1e-4}


def same(one, other, rel=1e-5):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert other[key] == pytest.approx(value, rel=rel, abs=1e-6), key


class Shares(pl.Callback):
    """What share of the numbers a process holds, of weights, moments and averages."""

    def on_train_end(self, trainer, module):
        (averaged,) = (c for c in trainer.callbacks if isinstance(c, AveragedWeights))
        average = averaged._average_model.module
        states = trainer.optimizers[0].state.values()
        moments = [s.get("exp_avg", s.get("momentum_buffer")) for s in states]
        for tensors in (list(module.parameters()), list(average.parameters()), moments):
            assert all(isinstance(tensor, DTensor) for tensor in tensors)
            held = sum(tensor.to_local().numel() for tensor in tensors)
            assert 0.4 < held / sum(tensor.numel() for tensor in tensors) < 0.6


@pytest.mark.parametrize("stage", ["dvae", "prior", "muon", "clipped", "recurrent", "ranker"])
@pytest.mark.parametrize(
    ("count", "strategy"),
    [(2, FullyShardedStrategy), (4, TWO_COPIES)],
    ids=["two", "two copies of two"],
)
def test_shards_train_what_one_process_trains(stage, count, strategy, tmp_path):
    train(stage, tmp_path / "1", 1, steps=20, noise=False)
    train(stage, tmp_path / "2", count, strategy, steps=20, noise=False, watch=[Shares()])
    alone, together = figures(tmp_path / "1"), figures(tmp_path / "2")
    assert {step for step, name in alone if name == "train/loss"} == set(range(20))
    assert {step for step, name in alone if name == "validation/loss"} == {6, 13}
    same(alone, together, CLOSE.get(stage, 1e-5))


def test_variances_are_clipped_in_shards_as_on_one(tmp_path):
    train("prior", tmp_path / "free", 1, steps=9, noise=False)
    train("clipped", tmp_path / "1", 1, steps=9, noise=False)
    train("clipped", tmp_path / "2", 2, FullyShardedStrategy, steps=9, noise=False)

    def variances(name):
        found = [value for key, value in states(tmp_path / name) if key.endswith("exp_avg_sq")]
        return torch.cat([value.flatten() for value in found])

    bound = torch.tensor(tiny.CLIP)
    assert (variances("free") > 2 * bound).any()
    assert variances("1").max() == bound
    torch.testing.assert_close(variances("2"), variances("1"), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("stage", ["dvae", "prior", "ranker"])
def test_compiled_shards_train_what_one_process_trains(stage, tmp_path):
    """Traced and differentiated as for any compiler, without the time that one takes."""
    train(stage, tmp_path / "1", 1, steps=8, noise=False)
    compiled = {"steps": 8, "noise": False, "backend": "aot_eager"}
    train(stage, tmp_path / "2", 2, FullyShardedStrategy, watch=[Shares()], **compiled)
    same(figures(tmp_path / "1"), figures(tmp_path / "2"), CLOSE.get(stage, 1e-5))


def test_copies_that_do_not_divide_the_processes_are_one_line(tmp_path, capfd):
    with pytest.raises(AssertionError):
        train("prior", tmp_path, 2, partial(FullyShardedStrategy, copies=3), steps=2)
    assert "trainer.strategy.copies=3 has to divide the processes, which are 2" in (
        capfd.readouterr().err
    )


def states(folder):
    """Weights, averages and moments of a run's last checkpoint."""
    saved = sharded_checkpoint.joined(sharded_checkpoint.read(folder / "checkpoints" / "last.ckpt"))
    for number, state in saved["optimizer_states"][0]["state"].items():
        yield from ((f"moments {number} {name}", value) for name, value in state.items())
    for kind in ("state_dict", "current_model_state"):
        yield from ((f"{kind} {name}", value) for name, value in saved[kind].items())


@pytest.mark.parametrize("stage", ["dvae", "prior"])  # the prior's optimizer has two groups
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((1, "ddp"), (2, FullyShardedStrategy)),
        ((2, FullyShardedStrategy), (1, "ddp")),
        ((2, IN_SHARDS), (1, "ddp")),
        ((2, IN_SHARDS), (1, FullyShardedStrategy)),
        ((4, TWO_COPIES), (2, IN_SHARDS)),
    ],
    ids=["one to two", "two to one", "shards to one", "shards to one shard", "copies to shards"],
)
def test_a_checkpoint_is_read_by_any_number_of_processes(stage, first, second, tmp_path):
    for folder, halves in (("mixed", (first, second)), ("alone", [(1, "ddp")] * 2)):
        for steps, half in zip((9, 16), halves, strict=True):
            train(stage, tmp_path / folder, *half, steps=steps, noise=False)
    alone, mixed = dict(states(tmp_path / "alone")), dict(states(tmp_path / "mixed"))
    assert alone.keys() == mixed.keys()
    for name, value in alone.items():
        torch.testing.assert_close(mixed[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "strategy", ["ddp", FullyShardedStrategy, IN_SHARDS], ids=["ddp", "whole", "in shards"]
)
def test_two_processes_go_on_with_the_same_bits(strategy, tmp_path):
    train("prior", tmp_path / "whole", 2, strategy, steps=16)
    for steps in (9, 16):
        train("prior", tmp_path / "stopped", 2, strategy, steps=steps)
    whole, stopped = dict(states(tmp_path / "whole")), dict(states(tmp_path / "stopped"))
    assert len(whole) > 100
    for name, value in whole.items():
        assert torch.equal(value, stopped[name]), name
    files = list((tmp_path / "stopped" / "checkpoints").iterdir())
    assert len(files) == (2 if strategy is IN_SHARDS else 1)  # of shards, a folder beside it


def test_shards_that_are_missing_are_one_line(tmp_path):
    train("dvae", tmp_path, 2, IN_SHARDS, steps=2)
    (last,) = tmp_path.glob("checkpoints/last.ckpt")
    (lost,) = tmp_path.glob("checkpoints/last.ckpt-*/1.pt")
    lost.unlink()
    with pytest.raises(UserError, match=r"last\.ckpt cannot be read.*1\.pt"):
        runs.check_unfinished(last, 9)


class Parts(pl.Callback):
    """Image tokens that the weights make, trained or not yet, by the first process alone."""

    def on_train_start(self, trainer, module):
        self.on_validation_epoch_end(trainer, module)

    def on_validation_epoch_end(self, trainer, module):
        with gathered(trainer, module):
            if trainer.is_global_zero:
                path = Path(trainer.default_root_dir) / f"{trainer.global_step}.drawn"
                torch.save(self.tokens(trainer, module), path)

    def tokens(self, trainer, module):
        if trainer.datamodule.image_tokenizer is None:
            images, _ = zip(*trainer.datamodule.examples("validation", 4), strict=True)
            return torch.cat([module.network.encode(image[None]) for image in images])
        return TextToImage.from_trainer(trainer, module).sample_tokens(["picture 3"], 2)


@pytest.mark.parametrize("stage", ["dvae", "prior", "recurrent"])
def test_one_process_draws_what_all_have_trained(stage, tmp_path):
    for name, count, strategy in (("1", 1, "ddp"), ("2", 2, FullyShardedStrategy)):
        train(stage, tmp_path / name, count, strategy, steps=16, noise=False, watch=[Parts()])
    drawn = [path.name for path in sorted((tmp_path / "1").glob("*.drawn"))]
    assert len(drawn) == 3
    for name in drawn:
        one, other = (torch.load(tmp_path / count / name) for count in "12")
        assert torch.equal(one, other)
    same(figures(tmp_path / "1"), figures(tmp_path / "2"))  # and the training went on


def test_bf16_in_shards_is_near_bf16_on_one(tmp_path):
    """The blocks' gains are rounded to bf16 there and not here; all else is cast alike."""
    for stage in ("dvae", "prior", "ranker"):
        for name, count, strategy in (("1", 1, "ddp"), ("2", 2, FullyShardedStrategy)):
            folder = tmp_path / stage / name
            train(stage, folder, count, strategy, steps=8, noise=False, precision="bf16-mixed")
        one, two = (figures(tmp_path / stage / name) for name in "12")
        assert one.keys() == two.keys()
        for step in range(8):
            loss = (step, "train/loss")
            assert two[loss] == pytest.approx(one[loss], rel=0.02), loss


def test_a_precision_that_is_not_known_is_one_line(tmp_path, capfd):
    with pytest.raises(AssertionError):
        train("prior", tmp_path, 1, FullyShardedStrategy, steps=2, precision="bf16-true")
    assert "trainer.precision=bf16-true" in capfd.readouterr().err


SMALL = [
    "trainer.accelerator=cpu",
    "trainer.max_steps=4",
    "trainer.val_check_interval=2",
    "data.source.train=40",
    "data.source.validation=8",
    "data.source.zeroshot=8",
    "data.batch_size=8",
    "~callbacks.frechet",
]


@pytest.mark.slow
def test_the_commands_take_a_run_of_shards(tmp_path):
    places = [f"paths.data={tmp_path / 'data'}", f"paths.logs={tmp_path / 'logs'}"]
    python = sys.executable
    run(python, "src/train.py", "stage=dvae", *SMALL, *places)
    shared = ["trainer=fsdp", "trainer.devices=2", "callbacks.samples.count=2"]
    shared += [f"trainer.strategy.{key}=true" for key in ("sharded_checkpoints", "on_meta")]
    run(python, "src/train.py", "stage=prior", "run_name=p", *shared, *SMALL, *places)
    checkpoints = tmp_path / "logs" / "prior" / "p" / "checkpoints"
    files = sorted(path.name.partition("-")[0] for path in checkpoints.iterdir())
    assert files == ["best.ckpt", "best.ckpt", "last.ckpt", "last.ckpt"]  # each with its folder
    words = ["prompt=a red circle", "n=2", "device=cpu", f"out={tmp_path / 'out'}"]
    run(python, "src/generate.py", *words, *places)
    assert len(list((tmp_path / "out").glob("000-*.png"))) == 2
    on_one = ["resume=true", "trainer=cpu", "trainer.max_steps=6"]
    said = run(python, "src/train.py", "stage=prior", *on_one, *places)
    assert "step      6/6" in said
    assert [path.name for path in checkpoints.glob("last.ckpt*")] == ["last.ckpt"]


@pytest.mark.slow
def test_torchrun_trains_in_shards_what_one_process_trains(tmp_path):
    places = [f"paths.data={tmp_path / 'data'}", f"paths.logs={tmp_path / 'logs'}"]
    run(sys.executable, "src/train.py", "stage=dvae", *SMALL, *places)
    words = ["src/train.py", "stage=prior", "model=prior_small", "trainer.precision=32-true"]
    words += ["model.caption_dropout=0", *SMALL, *places]  # and no other noise
    words += ["trainer.log_every_n_steps=1", "callbacks.samples.count=2"]
    run(sys.executable, *words, "run_name=one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    said = run(*launch, *words, "trainer=fsdp", "trainer.accelerator=cpu", "run_name=two")
    assert said.count("step      4/4") == 1, said
    folder = tmp_path / "logs" / "prior"
    alone, together = figures(folder / "one"), figures(folder / "two")
    assert {step for step, name in alone if name == "train/loss"} == set(range(4))
    same(alone, together)
