"""Schedules as pure functions of the update's index.

A value follows from the index alone, never from its previous value. Resuming, logging twice or
skipping an update cannot change it.
"""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from tilewright.checks import check_number, check_whole
from tilewright.errors import UserError

FIRST_VALUE = {"start", "value"}  # fields of the value that a schedule starts from
VALUES = {*FIRST_VALUE, "end"}  # fields of all values

Schedule = Callable[[int], float]


def find_key(schedule: Any, names: Collection[str]) -> str | None:
    """Returns the key of the first of these numbers in a schedule, such as `then.start`.

    Returns None if the schedule has none, or is not one of this module.
    """
    return next((key for key, _ in _numbers(schedule) if key.rpartition(".")[2] in names), None)


def find_peak(schedule: Any) -> str | None:
    """Returns the key of the highest value of a schedule, such as `then.start`.

    Returns None if the schedule is not one of this module.
    """
    values = {k: number for k, number in _numbers(schedule) if k.rpartition(".")[2] in VALUES}
    return max(values, key=lambda key: values[key], default=None)


def _numbers(schedule: Any) -> Iterator[tuple[str, Any]]:
    """Yields the numbers of a schedule and of those inside it, with their keys."""
    if not is_dataclass(schedule):
        return
    for field in fields(schedule):
        value = getattr(schedule, field.name)
        if callable(value):
            yield from ((f"{field.name}.{key}", number) for key, number in _numbers(value))
        else:
            yield field.name, value


def check_schedule(name: str, schedule: Any, exclusive: bool = False) -> None:
    """Checks that a setting is a schedule whose values are finite and not negative.

    Args:
        name: name of the setting, for the message.
        schedule: value of the setting.
        exclusive: True if 0 is not possible.

    Raises:
        UserError: it is not.
    """
    if not callable(schedule):
        raise UserError(f"{name}={schedule} is not a schedule: set its keys, as conf/model does")
    for key, number in _numbers(schedule):
        if key.rpartition(".")[2] in VALUES:
            check_number(f"{name}.{key}", number, 0, exclusive=exclusive)


@dataclass(frozen=True)
class Constant:
    """The same value at every update."""

    value: float

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `start` to `end`, then constant at `end`.

    Args:
        start: value at the first update.
        end: value after `delay + steps` updates.
        steps: length of the cosine in updates.
        delay: updates at `start` before the cosine begins.
    """

    start: float
    end: float
    steps: int
    delay: int = 0

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, 0)
        check_whole("delay", self.delay, 0)

    def __call__(self, step: int) -> float:
        progress = min(max((step - self.delay) / max(self.steps, 1), 0.0), 1.0)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class WarmUp:
    """Linear warm-up from zero, which multiplies another schedule.

    The factor of the first update is 1 / steps, because an update at rate zero would be wasted.

    Args:
        steps: length of the warm-up in updates.
        then: schedule that is multiplied. It counts from the first update of the warm-up.
    """

    steps: int
    then: Schedule

    def __post_init__(self) -> None:
        check_whole("steps", self.steps, 0)

    def __call__(self, step: int) -> float:
        return self.then(step) * min((step + 1) / max(self.steps, 1), 1.0)


@dataclass(frozen=True)
class Switch:
    """One schedule before the update `at`, then another one, which counts from `at`."""

    first: Schedule
    at: int
    then: Schedule

    def __post_init__(self) -> None:
        check_whole("at", self.at, 0)

    def __call__(self, step: int) -> float:
        return self.first(step) if step < self.at else self.then(step - self.at)
