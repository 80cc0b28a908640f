"""Schedules as pure functions of the update's index.

A value follows from the index alone, never from its previous value. Resuming, logging twice or
skipping an update cannot change it.
"""

import math
import operator
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from tilewright.checks import check_number, check_whole
from tilewright.errors import UserError

# Fields of the value that a schedule starts from.
PEAK = {"start", "value"}

Schedule = Callable[[int], float]


def find_key(schedule: Any, names: Collection[str]) -> str | None:
    """Returns the key of the first of these numbers in a schedule, such as `then.start`.

    Returns None if the schedule has none, or is not one of this module.
    """
    if not is_dataclass(schedule):
        return None
    for field in fields(schedule):
        if field.name in names:
            return field.name
        inner = find_key(getattr(schedule, field.name), names)
        if inner is not None:
            return f"{field.name}.{inner}"
    return None


def check_schedule(name: str, schedule: Any) -> None:
    """Checks that a setting is a schedule whose first number is finite and not negative.

    Raises:
        UserError: it is not.
    """
    if not callable(schedule):
        raise UserError(f"{name}={schedule} is not a schedule: set its keys, as conf/model does")
    key = find_key(schedule, PEAK)
    if key is not None:
        check_number(f"{name}.{key}", operator.attrgetter(key)(schedule), 0)


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

    def __call__(self, step: int) -> float:
        return self.first(step) if step < self.at else self.then(step - self.at)
