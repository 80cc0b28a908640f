"""PowerSGD compresses the blocks' matrices, and the loss still falls."""

from functools import partial

import pytest
import torch

from helpers import tiny
from helpers.multiprocess import logged_metrics, train
from tilewright.distributed import PowerSGDStrategy
from tilewright.distributed.powersgd import block_parameters
from tilewright.distributed.sharded_checkpoint import read_checkpoint
from tilewright.errors import UserError


@pytest.mark.parametrize(("name", "value"), [("rank", 0), ("warmup_updates", 1)])
def test_impossible_settings_are_user_errors(name, value):
    with pytest.raises(UserError, match=rf"trainer\.strategy\.{name}={value} is not possible"):
        PowerSGDStrategy(**{name: value})


def weights(folder):
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")["current_model_state"]


def test_only_matrices_of_blocks_are_compressed(tmp_path):
    """Compresses the third update only: until then, both trainings have the same weights."""
    compressed = partial(PowerSGDStrategy, rank=2, warmup_updates=2)
    for name, strategy in (("ddp", "ddp"), ("low", compressed)):
        train("prior", tmp_path / name, 2, strategy, steps=3, noise=False, gradient_clip_val=None)
    ddp, low_rank = weights(tmp_path / "ddp"), weights(tmp_path / "low")
    module, _, _ = tiny.make("prior", tmp_path)
    blocks = block_parameters(module.network)
    matrices = [
        f"network.{name}"
        for name, parameter in module.network.named_parameters()
        if parameter in blocks and parameter.ndim > 1
    ]
    assert len(matrices) == 2 * 4
    for name, value in ddp.items():
        if name in matrices:
            assert not torch.allclose(value, low_rank[name], atol=1e-6), name
        else:  # embeddings, heads, gains and biases, up to the order of sums
            torch.testing.assert_close(value, low_rank[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", ["dvae", "prior"])
def test_the_loss_falls_nearly_as_far_as_with_ddp(stage, trained, tmp_path):
    strategy = partial(PowerSGDStrategy, rank=2, warmup_updates=5)
    train(stage, tmp_path, 2, strategy, steps=tiny.STEPS, noise=False)
    ddp = logged_metrics(trained(stage, 2, steps=tiny.STEPS, noise=False))
    low_rank = logged_metrics(tmp_path)
    first, last = ((step, "train/loss") for step in (0, tiny.STEPS - 1))
    assert low_rank[first] == pytest.approx(ddp[first], rel=1e-5)
    assert ddp[last] < 0.9 * ddp[first]
    assert low_rank[first] - low_rank[last] > 0.8 * (ddp[first] - ddp[last])
    assert low_rank[last] != ddp[last]
