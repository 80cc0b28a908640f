"""Schedules as pure functions of the step.

A value that anneals is computed from the step alone, never from its own last value: resuming,
logging twice or skipping a step cannot change it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """The same value at every step."""

    value: float

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from `start` to `end` over `steps` updates, then `end` for good.

    Args:
        delay: updates spent at `start` before the descent begins.
    """

    start: float
    end: float
    steps: int
    delay: int = 0

    def __call__(self, step: int) -> float:
        progress = min(max((step - self.delay) / max(self.steps, 1), 0.0), 1.0)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class WarmUp:
    """A linear rise from zero over `steps` updates, up to the schedule `then`.

    The first update already has 1 / steps of the value: a step at rate zero would be lost.
    """

    steps: int
    then: Schedule

    def __call__(self, step: int) -> float:
        return self.then(step) * min((step + 1) / max(self.steps, 1), 1.0)


@dataclass(frozen=True)
class Switch:
    """One schedule until update `at`, then another, which counts its steps from there."""

    first: Schedule
    at: int
    then: Schedule

    def __call__(self, step: int) -> float:
        return self.first(step) if step < self.at else self.then(step - self.at)
