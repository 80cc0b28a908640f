"""Checks of numbers and flags that a user sets."""

import math
from numbers import Integral, Real
from typing import Any

from tilewright.errors import UserError

MAX_SEED = 2**32 - 1  # NumPy and Lightning accept no larger seed


def check_number(
    name: str, value: Any, minimum: float, maximum: float = math.inf, exclusive: bool = False
) -> None:
    """Checks that a setting is a finite number in a range.

    Args:
        name: name of the setting, for the message.
        value: value of the setting.
        minimum: smallest number.
        maximum: largest number.
        exclusive: True if `minimum` itself is not possible.

    Raises:
        UserError: the value is not a number, not finite, or out of range.
    """
    if _is_in_range(value, Real, minimum, maximum) and not (exclusive and value == minimum):
        return
    if exclusive:
        limits = f"above {minimum}" + ("" if maximum == math.inf else f" and at most {maximum}")
    else:
        limits = _describe(minimum, maximum)
    raise UserError(f"{name}={as_typed(value)} is not possible: set a number {limits}")


def check_whole(name: str, value: Any, minimum: int = 1, maximum: float = math.inf) -> None:
    """Checks that a setting is a whole number in a range.

    Args:
        name: name of the setting, for the message.
        value: value of the setting.
        minimum: smallest number.
        maximum: largest number.

    Raises:
        UserError: the value is not a whole number, or out of range.
    """
    if not _is_in_range(value, Integral, minimum, maximum):
        limits = _describe(minimum, maximum)
        raise UserError(f"{name}={as_typed(value)} is not possible: set a whole number {limits}")


def check_flag(name: str, value: Any) -> None:
    """Checks that a setting is true or false.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, bool):
        raise UserError(f"{name}={as_typed(value)} is not possible: set true or false")


def as_typed(value: Any) -> str:
    """Returns a value as the user types it: `null`, `true` or `false` for Python's constants."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_in_range(value: Any, kind: type, minimum: float, maximum: float) -> bool:
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    return is_number and minimum <= value <= maximum and value != math.inf


def _describe(minimum: float, maximum: float) -> str:
    return f"of {minimum} or more" if maximum == math.inf else f"from {minimum} to {maximum}"
