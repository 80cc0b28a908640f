"""When a callback looks that does not at every validation."""

from types import SimpleNamespace

import pytest

from tilewright.callbacks.alignment import Alignment
from tilewright.callbacks.frechet import FrechetDistance
from tilewright.callbacks.periodic import Periodic


class Looks(Periodic):
    def __init__(self, every):
        super().__init__(every)
        self.steps = []

    def look(self, trainer, pl_module):
        self.steps.append(trainer.global_step)


def validated(callback, steps, max_steps=-1, sanity_checking=False):
    for step in steps:
        trainer = SimpleNamespace(
            sanity_checking=sanity_checking, global_step=step, max_steps=max_steps
        )
        callback.on_validation_epoch_end(trainer, None)
    return callback.steps


def test_it_looks_at_every_so_many_validations():
    assert validated(Looks(3), range(1, 8)) == [3, 6]


def test_it_looks_at_the_last_one_too():
    assert validated(Looks(3), range(1, 6), max_steps=5) == [3, 5]


def test_a_sanity_check_is_no_validation():
    callback = Looks(2)
    assert validated(callback, [0, 0], sanity_checking=True) == []
    assert validated(callback, [1, 2, 3]) == [2]


@pytest.mark.parametrize("kind", [Looks, Alignment, FrechetDistance])
def test_a_resumed_training_goes_on_counting(kind):
    before, after = Looks(3), kind(every=3)
    validated(before, [1, 2])
    after.load_state_dict(before.state_dict())
    assert after.state_dict() == {"validations": 2}


def test_a_resumed_training_looks_when_the_whole_one_would():
    before, after = Looks(3), Looks(3)
    validated(before, range(1, 5))
    after.load_state_dict(before.state_dict())
    assert validated(after, range(5, 10)) == [6, 9]
