"""Checks of numbers and flags that the user sets."""

import math
from collections.abc import Collection
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
    if is_number(value, minimum, maximum) and not (exclusive and value == minimum):
        return
    if exclusive:
        limits = f"above {minimum}" + ("" if maximum == math.inf else f" and at most {maximum}")
    else:
        limits = _describe_range(minimum, maximum)
    raise UserError(f"{name}={format_value(value)} is not possible: set a number {limits}")


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
    if not is_whole(value, minimum, maximum):
        limits = _describe_range(minimum, maximum)
        raise UserError(
            f"{name}={format_value(value)} is not possible: set a whole number {limits}"
        )


def check_flag(name: str, value: Any) -> None:
    """Checks that a setting is true or false.

    Raises:
        UserError: the value is something else.
    """
    if not isinstance(value, bool):
        raise UserError(f"{name}={format_value(value)} is not possible: set true or false")


def check_option(name: str, value: Any, options: Collection[str]) -> None:
    """Checks that a setting is one of some names.

    Raises:
        UserError: the value is something else.
    """
    if not isinstance(value, str) or value not in options:
        raise UserError(
            f"{name}={format_value(value)} is not possible: set one of {', '.join(options)}"
        )


def format_value(value: Any) -> str:
    """Formats a value for a message, with `null`, `true` and `false` for Python's constants."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def is_number(value: Any, minimum: float = -math.inf, maximum: float = math.inf) -> bool:
    """Returns True if a value is a finite number from `minimum` to `maximum`, and not a flag."""
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    return is_real and minimum <= value <= maximum and -math.inf < value < math.inf


def is_whole(value: Any, minimum: float = -math.inf, maximum: float = math.inf) -> bool:
    """Returns True if a value is a whole number from `minimum` to `maximum`, and not a flag."""
    return isinstance(value, Integral) and is_number(value, minimum, maximum)


def _describe_range(minimum: float, maximum: float) -> str:
    return f"of {minimum} or more" if maximum == math.inf else f"from {minimum} to {maximum}"
