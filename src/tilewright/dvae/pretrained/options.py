"""Settings that other projects save with their networks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tilewright.checks import format_value, is_whole
from tilewright.errors import UserError


class Options:
    """Settings in a file, each checked when it is read.

    Args:
        values: the settings, by name.
        source: the file, for messages.
    """

    def __init__(self, values: Any, source: str | Path):
        if not isinstance(values, Mapping):
            raise UserError(f"{source} does not contain settings of a network: give its file")
        self._values = values
        self.source = source

    def part(self, *names: str) -> "Options":
        """Returns the settings below some names.

        Raises:
            UserError: they are missing.
        """
        values: Any = self._values
        for name in names:
            values = values.get(name) if isinstance(values, Mapping) else None
        if not isinstance(values, Mapping):
            raise UserError(
                f"{self.source} has no {'.'.join(names)}: give the configuration of the network"
            )
        return Options(values, self.source)

    def get(self, name: str, default: Any = None) -> Any:
        """Returns a setting without a check."""
        return self._values.get(name, default)

    def whole(self, name: str, default: int | None = None) -> int:
        """Returns a whole number above 0.

        Raises:
            UserError: the setting is something else.
        """
        return self._check(name, self.get(name, default))

    def wholes(self, name: str, default: Sequence[int] | None = None) -> list[int]:
        """Returns a list of whole numbers above 0.

        Raises:
            UserError: the setting is something else.
        """
        values = self.get(name, default)
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise self._impossible(name, values)
        return [self._check(name, value) for value in values]

    def check(self, **only: Any) -> None:
        """Checks that settings have the only value that is supported.

        Raises:
            UserError: a setting has another value.
        """
        for name, value in self._values.items():
            if name in only and value != only[name]:
                raise UserError(
                    f"{self.source} has {name}={format_value(value)}, which is not supported: use "
                    f"a network with {name}={format_value(only[name])}"
                )

    def _check(self, name: str, value: Any) -> int:
        if not is_whole(value, 1):
            raise self._impossible(name, value)
        return int(value)

    def _impossible(self, name: str, value: Any) -> UserError:
        return UserError(
            f"{self.source} has {name}={format_value(value)}, which is not possible: give the "
            "configuration of the network"
        )
