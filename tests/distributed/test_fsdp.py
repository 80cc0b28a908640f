"""FSDP2 trains what one process trains, and all strategies read each other's checkpoints."""

import sys
from functools import partial

import pytest
import torch

from helpers import tiny
from helpers.multiprocess import logged_metrics, run, train
from helpers.probes import BreakShards, NanWeights, SameBuffers, ShardSizes, TokensOfFirstProcess
from tilewright import runs
from tilewright.distributed import FullyShardedStrategy
from tilewright.distributed.sharded_checkpoint import load_stored_tensors, read_checkpoint
from tilewright.errors import UserError

SHARDED_FILES = partial(FullyShardedStrategy, sharded_checkpoints=True)
TWO_REPLICAS = partial(SHARDED_FILES, replicas=2)

# Relative tolerance of metrics. Muon orthogonalizes in bf16, whose sums depend on the sharding, and
# Adam turns rounding errors of small gradients into whole steps.
TOLERANCE = {"muon": 2e-3, "ranker": 1e-4}


CHECKED = {"noise": False, "extra_callbacks": [ShardSizes(), SameBuffers()]}


def assert_close(expected, actual, rel=1e-5):
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        assert actual[key] == pytest.approx(value, rel=rel, abs=1e-6), key


def tensors_of_last_checkpoint(folder):
    """Returns weights, averages and optimizer states by name."""
    saved = load_stored_tensors(read_checkpoint(folder / "checkpoints" / "last.ckpt"))
    tensors = {
        f"optimizer {index} {name}": value
        for index, state in saved["optimizer_states"][0]["state"].items()
        for name, value in state.items()
    }
    for kind in ("state_dict", "current_model_state"):
        tensors |= {f"{kind} {name}": value for name, value in saved[kind].items()}
    return tensors


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("dvae", marks=pytest.mark.slow),
        "fsq",
        "prior",
        pytest.param("muon", marks=pytest.mark.slow),
        "clipped",
        "recurrent",
        "ranker",
        pytest.param("lora", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("processes", "strategy"),
    [(2, FullyShardedStrategy), pytest.param(4, TWO_REPLICAS, marks=pytest.mark.slow)],
    ids=["two processes", "two replicas of two"],
)
def test_sharded_training_equals_that_of_one_process(stage, processes, strategy, trained):
    expected = logged_metrics(trained(stage, steps=20, noise=False))
    actual = logged_metrics(trained(stage, processes, strategy, steps=20, **CHECKED))
    assert {step for step, name in expected if name == "train/loss"} == set(range(20))
    assert {step for step, name in expected if name == "validation/loss"} >= {6, 13}
    assert_close(expected, actual, TOLERANCE.get(stage, 1e-5))


def test_a_sharded_dvae_learns_the_codebook_of_one_process(trained):
    """Compares the first updates: later, a rounding error moves a latent to another vector."""
    expected = logged_metrics(trained("vq", steps=8, noise=False))
    actual = logged_metrics(trained("vq", 2, FullyShardedStrategy, steps=8, **CHECKED))
    assert_close(expected, actual)


def test_a_sharded_discriminator_learns_as_in_one_process(trained):
    """Compares the first updates: a discriminator soon multiplies rounding errors."""
    expected = logged_metrics(trained("adversarial", steps=6, noise=False))
    actual = logged_metrics(trained("adversarial", 2, FullyShardedStrategy, steps=6, **CHECKED))
    for update in (3, 4, 5):
        for name in ("train/loss", "train/generator", "train/discriminator"):
            key = (update, name)
            assert actual[key] == pytest.approx(expected[key], rel=1e-2), key


def test_variances_are_clipped_in_shards_as_in_one_process(trained):
    def variances(folder):
        tensors = tensors_of_last_checkpoint(folder)
        return torch.cat([t.flatten() for name, t in tensors.items() if "exp_avg_sq" in name])

    limit = torch.tensor(tiny.VARIANCE_CLIP)
    unclipped = variances(trained("prior", steps=20, noise=False))
    clipped = variances(trained("clipped", steps=20, noise=False))
    sharded = variances(trained("clipped", 2, FullyShardedStrategy, steps=20, **CHECKED))
    assert (unclipped > 2 * limit).any()
    assert clipped.max() == limit
    torch.testing.assert_close(sharded, clipped, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("dvae", marks=pytest.mark.slow),
        "prior",
        pytest.param("ranker", marks=pytest.mark.slow),
    ],
)
def test_compiled_sharded_training_equals_that_of_one_process(stage, trained):
    """Uses the backend aot_eager: it traces and differentiates without the time of a compiler."""
    expected = logged_metrics(trained(stage, steps=8, noise=False))
    compiled = {"steps": 8, "backend": "aot_eager", **CHECKED}
    actual = logged_metrics(trained(stage, 2, FullyShardedStrategy, **compiled))
    assert_close(expected, actual, TOLERANCE.get(stage, 1e-5))


def test_replicas_that_do_not_divide_the_processes_are_a_user_error(tmp_path):
    message = r"trainer\.strategy\.replicas=3 does not divide the 2 processes"
    with pytest.raises(AssertionError, match=message):
        train("prior", tmp_path, 2, partial(FullyShardedStrategy, replicas=3), steps=2)


@pytest.fixture(scope="module")
def resumed_alone(tmp_path_factory):
    """Returns a function for the tensors of one process that stopped at 9 of 16 updates."""
    tensors = {}

    def get(stage):
        if stage not in tensors:
            folder = tmp_path_factory.mktemp(stage)
            for steps in (9, 16):
                train(stage, folder, 1, steps=steps, noise=False)
            tensors[stage] = tensors_of_last_checkpoint(folder)
        return tensors[stage]

    return get


@pytest.mark.parametrize("stage", ["dvae", "prior"])  # the prior's optimizer has two groups
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((1, "ddp"), (2, FullyShardedStrategy)),
        ((2, FullyShardedStrategy), (1, "ddp")),
        ((2, SHARDED_FILES), (1, "ddp")),
        ((2, SHARDED_FILES), (1, FullyShardedStrategy)),
        pytest.param((4, TWO_REPLICAS), (2, SHARDED_FILES), marks=pytest.mark.slow),
    ],
    ids=["1 to 2", "2 to 1", "2 files to ddp", "2 files to 1", "2 replicas to 2 files"],
)
def test_every_strategy_reads_every_checkpoint(stage, first, second, resumed_alone, tmp_path):
    for steps, (processes, strategy) in zip((9, 16), (first, second), strict=True):
        train(stage, tmp_path, processes, strategy, steps=steps, noise=False)
    expected, actual = resumed_alone(stage), tensors_of_last_checkpoint(tmp_path)
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "strategy",
    ["ddp", FullyShardedStrategy, SHARDED_FILES],
    ids=["ddp", "one file", "sharded files"],
)
def test_two_processes_resume_to_the_same_bits(strategy, tmp_path):
    train("prior", tmp_path / "uninterrupted", 2, strategy, steps=16)
    for steps in (9, 16):
        train("prior", tmp_path / "resumed", 2, strategy, steps=steps)
    expected = tensors_of_last_checkpoint(tmp_path / "uninterrupted")
    actual = tensors_of_last_checkpoint(tmp_path / "resumed")
    assert len(expected) > 100
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        assert torch.equal(value, actual[name]), name
    files = list((tmp_path / "resumed" / "checkpoints").iterdir())
    assert len(files) == (2 if strategy is SHARDED_FILES else 1)  # a file and its shards' folder


def test_each_process_writes_about_half_of_the_tensors(tmp_path):
    train("prior", tmp_path, 2, SHARDED_FILES, steps=2)
    sizes = [file.stat().st_size for file in tmp_path.glob("checkpoints/last.ckpt-*/*")]
    assert len(sizes) == 2
    assert 0.4 < sizes[0] / sum(sizes) < 0.6


def test_a_missing_file_of_shards_is_a_user_error(tmp_path):
    train("dvae", tmp_path, 2, SHARDED_FILES, steps=2)
    (last,) = tmp_path.glob("checkpoints/last.ckpt")
    missing = sorted(tmp_path.glob("checkpoints/last.ckpt-*/*"))[1]
    missing.unlink()
    with pytest.raises(UserError, match=rf"last\.ckpt cannot be read.*{missing.name} is missing"):
        runs.check_unfinished(last, 9)


def test_a_process_that_cannot_write_its_shards_leaves_the_previous_checkpoint(tmp_path):
    train("prior", tmp_path, 2, SHARDED_FILES, steps=2)
    previous = tensors_of_last_checkpoint(tmp_path)
    failing = {"steps": 4, "extra_callbacks": [BreakShards()]}
    message = r"cannot be written by process 1 \(No space left on device\)"
    with pytest.raises(AssertionError, match=message):
        train("prior", tmp_path, 2, SHARDED_FILES, **failing)
    kept = tensors_of_last_checkpoint(tmp_path)
    assert kept.keys() == previous.keys()
    assert all(torch.equal(kept[name], value) for name, value in previous.items())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [FullyShardedStrategy, SHARDED_FILES])
def test_a_shard_that_is_not_finite_replaces_no_checkpoint(strategy, tmp_path):
    train("prior", tmp_path, 2, strategy, steps=2)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("checkpoints/**/*")}
    train("prior", tmp_path, 2, strategy, steps=4, extra_callbacks=[NanWeights(3)])
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.glob("checkpoints/**/*")}


@pytest.mark.parametrize("stage", ["dvae", "prior", "recurrent"])
def test_gathered_weights_are_complete_before_and_during_a_training(stage, tmp_path):
    for name, processes, strategy in (("1", 1, "ddp"), ("2", 2, FullyShardedStrategy)):
        callbacks = [TokensOfFirstProcess()]
        arguments = {"steps": 16, "noise": False, "extra_callbacks": callbacks}
        train(stage, tmp_path / name, processes, strategy, **arguments)
    names = [path.name for path in sorted((tmp_path / "1").glob("*.tokens"))]
    assert names == ["0.tokens", "14.tokens", "16.tokens", "7.tokens"]
    for name in names:
        alone, sharded = (torch.load(tmp_path / folder / name) for folder in "12")
        assert torch.equal(alone, sharded)
    # The training continues as without these computations.
    assert_close(logged_metrics(tmp_path / "1"), logged_metrics(tmp_path / "2"))


@pytest.mark.parametrize("stage", ["dvae", "vqgan", "prior", "ranker"])
def test_sharded_bf16_is_close_to_bf16_in_one_process(stage, trained):
    """FSDP2 rounds the gains of blocks to bf16 and one process does not. All other casts agree."""
    arguments = {"steps": 8, "noise": False, "precision": "bf16-mixed"}
    alone = logged_metrics(trained(stage, **arguments))
    sharded = logged_metrics(trained(stage, 2, FullyShardedStrategy, **arguments))
    assert alone.keys() == sharded.keys()
    for step in range(8):
        loss = (step, "train/loss")
        assert sharded[loss] == pytest.approx(alone[loss], rel=0.02), loss


def test_an_unsupported_precision_is_a_user_error(tmp_path):
    message = r"trainer=fsdp does not support trainer\.precision=bf16-true"
    with pytest.raises(AssertionError, match=message):
        train("prior", tmp_path, 1, FullyShardedStrategy, steps=2, precision="bf16-true")


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
def test_the_commands_use_a_run_with_sharded_files(tmp_path):
    paths = [f"paths.data={tmp_path / 'data'}", f"paths.logs={tmp_path / 'logs'}"]
    python = sys.executable
    run(python, "src/train.py", "stage=dvae", *SMALL, *paths)
    sharded = ["trainer=fsdp", "trainer.devices=2", "callbacks.samples.count=2"]
    sharded += [f"trainer.strategy.{key}=true" for key in ("sharded_checkpoints", "on_meta")]
    run(python, "src/train.py", "stage=prior", "run_name=p", *sharded, *SMALL, *paths)
    checkpoints = tmp_path / "logs" / "prior" / "p" / "checkpoints"
    files = sorted(path.name.partition("-")[0] for path in checkpoints.iterdir())
    assert files == ["best.ckpt", "best.ckpt", "last.ckpt", "last.ckpt"]  # files and folders
    words = ["prompt=a red circle", "n=2", "device=cpu", f"out={tmp_path / 'out'}"]
    run(python, "src/generate.py", *words, *paths)
    assert len(list((tmp_path / "out").glob("000-*.png"))) == 2
    one_process = ["resume=true", "trainer=cpu", "trainer.max_steps=6"]
    output = run(python, "src/train.py", "stage=prior", *one_process, *paths)
    assert "step      6/6" in output
    assert [path.name for path in checkpoints.glob("last.ckpt*")] == ["last.ckpt"]


@pytest.mark.slow
def test_torchrun_with_fsdp_trains_what_one_process_trains(tmp_path):
    paths = [f"paths.data={tmp_path / 'data'}", f"paths.logs={tmp_path / 'logs'}"]
    run(sys.executable, "src/train.py", "stage=dvae", *SMALL, *paths)
    words = ["src/train.py", "stage=prior", "model=prior_small", "trainer.precision=32-true"]
    words += ["model.caption_dropout=0", *SMALL, *paths]  # no other noise
    words += ["trainer.log_every_n_steps=1", "callbacks.samples.count=2"]
    run(sys.executable, *words, "run_name=one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    output = run(*launch, *words, "trainer=fsdp", "trainer.accelerator=cpu", "run_name=two")
    assert output.count("step      4/4") == 1, output
    folder = tmp_path / "logs" / "prior"
    alone, sharded = logged_metrics(folder / "one"), logged_metrics(folder / "two")
    assert {step for step, name in alone if name == "train/loss"} == {1, 2, 3, 4}
    assert_close(alone, sharded)
