"""PowerSGD: what is compressed and what is not, and that a training gets on with it."""

from functools import partial

import pytest
import torch

from helpers import tiny
from helpers.processes import figures, train
from tilewright.distributed import sharded_checkpoint
from tilewright.distributed.powersgd import PowerSGDStrategy, block_parameters


def weights(folder):
    return sharded_checkpoint.read(folder / "checkpoints" / "last.ckpt")["current_model_state"]


def test_matrices_of_blocks_alone_are_compressed(tmp_path):
    """The third update is the first that is: until then both trainings have the same weights."""
    for name, strategy in (("ddp", "ddp"), ("low", partial(PowerSGDStrategy, rank=2, start=2))):
        train("prior", tmp_path / name, 2, strategy, steps=3, noise=False, gradient_clip_val=None)
    plain, low = weights(tmp_path / "ddp"), weights(tmp_path / "low")
    module, _, _ = tiny.make("prior", tmp_path)
    blocks = block_parameters(module.network)
    matrices = [
        f"network.{name}"
        for name, parameter in module.network.named_parameters()
        if parameter in blocks and parameter.ndim > 1
    ]
    assert len(matrices) == 2 * 4
    for name, value in plain.items():
        if name in matrices:
            assert not torch.allclose(value, low[name], atol=1e-6), name
        else:  # embeddings, heads, gains, biases; to what the order of a sum changes
            torch.testing.assert_close(value, low[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", ["dvae", "prior"])
def test_the_loss_falls_as_without(stage, tmp_path):
    for name, strategy in (("ddp", "ddp"), ("low", partial(PowerSGDStrategy, rank=2, start=5))):
        train(stage, tmp_path / name, 2, strategy, steps=tiny.STEPS, noise=False)
    plain, low = figures(tmp_path / "ddp"), figures(tmp_path / "low")
    first, last = ((step, "train/loss") for step in (0, tiny.STEPS - 1))
    assert low[first] == pytest.approx(plain[first], rel=1e-5)
    assert plain[last] < 0.9 * plain[first]
    gained, kept = plain[first] - plain[last], low[first] - low[last]
    assert kept > 0.8 * gained
    assert low[last] != plain[last]
