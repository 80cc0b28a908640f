"""Schedules: edge cases, and independence of earlier calls."""

import math
import random

import pytest

from tilewright.errors import UserError
from tilewright.training.schedules import (
    Constant,
    Cosine,
    Switch,
    WarmUp,
    check_schedule,
    find_key,
    find_peak,
)


def test_constant_is_constant():
    assert [Constant(0.3)(step) for step in (0, 1, 10**9)] == [0.3] * 3


def test_cosine_at_its_start_middle_and_end():
    schedule = Cosine(start=1.0, end=1 / 16, steps=100)
    assert schedule(0) == 1.0
    assert schedule(50) == pytest.approx((1 + 1 / 16) / 2)
    assert schedule(25) == pytest.approx(1 / 16 + 15 / 16 * (1 + 2**-0.5) / 2)
    assert schedule(100) == schedule(101) == schedule(10**9) == 1 / 16


def test_cosine_can_rise():
    schedule = Cosine(start=0.0, end=6.6, steps=5000)
    values = [schedule(step) for step in range(0, 6000, 50)]
    assert values == sorted(values)
    assert (values[0], values[-1]) == (0.0, 6.6)


def test_cosine_starts_after_its_delay():
    schedule = Cosine(start=2.0, end=1.0, steps=10, delay=5)
    assert [schedule(step) for step in (0, 5)] == [2.0, 2.0]
    assert schedule(6) < 2.0
    assert schedule(10) == pytest.approx(1.5)
    assert schedule(15) == 1.0


def test_cosine_of_zero_steps_jumps_to_its_end():
    schedule = Cosine(start=2.0, end=1.0, steps=0)
    assert schedule(0) == 2.0
    assert schedule(1) == 1.0


def test_warm_up_rises_linearly_and_the_first_update_is_not_zero():
    schedule = WarmUp(steps=4, then=Constant(8.0))
    assert [schedule(step) for step in range(6)] == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]


def test_warm_up_multiplies_the_schedule_from_its_first_update():
    then = Cosine(start=1.0, end=0.0, steps=10)
    schedule = WarmUp(steps=5, then=then)
    assert schedule(1) == pytest.approx(then(1) * 2 / 5)
    assert schedule(7) == then(7)


def test_warm_up_of_zero_steps_changes_nothing():
    assert WarmUp(steps=0, then=Constant(3.0))(0) == 3.0


def test_the_second_schedule_of_switch_counts_from_the_change():
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


@pytest.mark.parametrize(
    ("schedule", "names", "key"),
    [
        (Constant(0.1), {"value"}, "value"),
        (WarmUp(5, Cosine(1.0, 0.1, 10)), {"start", "value"}, "then.start"),
        (Switch(Cosine(1.0, 0.4, 6), 8, Constant(0.4)), {"steps"}, "first.steps"),
        (Constant(0.1), {"steps"}, None),
        (lambda step: 0.1, {"value"}, None),
    ],
)
def test_a_number_of_a_schedule_is_found_by_its_key(schedule, names, key):
    assert find_key(schedule, names) == key


@pytest.mark.parametrize(
    ("schedule", "key"),
    [
        (Constant(0.1), "value"),
        (Cosine(10.0, 1.0, 5), "start"),
        (WarmUp(5, Cosine(0.0, 6.6, 5000)), "then.end"),
        (lambda step: 0.1, None),
    ],
)
def test_the_peak_of_a_schedule_is_its_highest_value(schedule, key):
    assert find_peak(schedule) == key


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Constant(-1), "x.value=-1 is not possible: set a number of 0 or more"),
        (Constant(math.nan), "x.value=nan"),
        (Cosine(1, -0.1, 5), "x.end=-0.1"),
        (WarmUp(5, Cosine(1, math.inf, 5)), "x.then.end=inf"),
        (Switch(Constant(1), 5, Cosine(1, math.nan, 5)), "x.then.end=nan"),
        (Switch(Constant(-1), 5, Constant(1)), "x.first.value=-1"),
    ],
)
def test_every_value_of_a_schedule_is_finite_and_not_negative(schedule, message):
    with pytest.raises(UserError, match=message):
        check_schedule("x", schedule)


def test_a_schedule_may_end_at_zero_unless_zero_is_excluded():
    check_schedule("x", Cosine(1.0, 0.0, 5))
    with pytest.raises(UserError, match=r"x\.end=0\.0 is not possible: set a number above 0"):
        check_schedule("x", Cosine(1.0, 0.0, 5), exclusive=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(1.0, 0.0, 5, delay=-1), "delay=-1"),
        (lambda: Switch(Constant(1), -1, Constant(1)), "at=-1"),
        (lambda: Switch(Constant(1), 0.5, Constant(1)), r"at=0\.5"),
    ],
)
def test_updates_of_a_schedule_are_whole_numbers(make, message):
    with pytest.raises(UserError, match=message):
        make()
