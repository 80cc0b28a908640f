"""Sharded weights: two processes train what one trains, and read what it writes."""

import pytest

from test_processes import figures, train
from tilewright.sharding import FullyShardedStrategy


def same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert other[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key


@pytest.mark.parametrize("stage", ["dvae", "prior", "ranker"])
def test_shards_train_what_one_process_trains(stage, tmp_path):
    train(stage, tmp_path / "1", 1, steps=20, noise=False)
    train(stage, tmp_path / "2", 2, FullyShardedStrategy, steps=20, noise=False)
    alone, together = figures(tmp_path / "1"), figures(tmp_path / "2")
    assert {step for step, name in alone if name == "train/loss"} == set(range(20))
    assert {step for step, name in alone if name == "validation/loss"} == {6, 13}
    same(alone, together)
