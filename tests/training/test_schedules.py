"""The schedules: their corners, and that they depend on the step alone."""

import random

import pytest

from tilewright.training.schedules import Constant, Cosine, Switch, WarmUp


def test_constant_is_constant():
    assert [Constant(0.3)(step) for step in (0, 1, 10**9)] == [0.3] * 3


def test_cosine_starts_halves_and_stays_at_its_end():
    schedule = Cosine(start=1.0, end=1 / 16, steps=100)
    assert schedule(0) == 1.0
    assert schedule(50) == pytest.approx((1 + 1 / 16) / 2)
    assert schedule(25) == pytest.approx(1 / 16 + 15 / 16 * (1 + 2**-0.5) / 2)
    assert schedule(100) == schedule(101) == schedule(10**9) == 1 / 16


def test_cosine_may_rise_as_beta_does():
    schedule = Cosine(start=0.0, end=6.6, steps=5000)
    values = [schedule(step) for step in range(0, 6000, 50)]
    assert values == sorted(values)
    assert (values[0], values[-1]) == (0.0, 6.6)


def test_cosine_waits_for_its_delay():
    schedule = Cosine(start=2.0, end=1.0, steps=10, delay=5)
    assert [schedule(step) for step in (0, 5)] == [2.0, 2.0]
    assert schedule(6) < 2.0
    assert schedule(10) == pytest.approx(1.5)
    assert schedule(15) == 1.0


def test_cosine_over_no_steps_is_a_jump():
    schedule = Cosine(start=2.0, end=1.0, steps=0)
    assert schedule(0) == 2.0
    assert schedule(1) == 1.0


def test_warm_up_rises_from_its_first_share_to_the_whole():
    schedule = WarmUp(steps=4, then=Constant(8.0))
    assert [schedule(step) for step in range(6)] == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]


def test_warm_up_multiplies_a_schedule_that_already_runs():
    then = Cosine(start=1.0, end=0.0, steps=10)
    schedule = WarmUp(steps=5, then=then)
    assert schedule(1) == pytest.approx(then(1) * 2 / 5)
    assert schedule(7) == then(7)


def test_warm_up_over_no_steps_is_absent():
    assert WarmUp(steps=0, then=Constant(3.0))(0) == 3.0


def test_switch_counts_the_second_schedules_steps_from_the_change():
    schedule = Switch(Constant(5.0), at=10, then=Cosine(start=1.0, end=0.0, steps=4))
    assert schedule(9) == 5.0
    assert schedule(10) == 1.0
    assert schedule(14) == 0.0


@pytest.mark.parametrize(
    "schedule",
    [
        Constant(1.0),
        Cosine(1.0, 0.1, 30, delay=3),
        WarmUp(7, Cosine(1.0, 0.1, 30)),
        Switch(Constant(1.0), 20, Cosine(1.0, 0.1, 30)),
    ],
)
def test_a_value_does_not_depend_on_earlier_calls(schedule):
    steps = list(range(40))
    in_order = {step: schedule(step) for step in steps}
    random.Random(0).shuffle(steps)
    assert {step: schedule(step) for step in steps} == in_order
