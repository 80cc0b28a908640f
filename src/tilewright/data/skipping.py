"""Skipped rows: the exception that skips a row, and counts by reason."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from tilewright.errors import UserError


class SkipRow(Exception):  # noqa: N818
    """Raised to skip a row that cannot be used.

    Args:
        reason: short reason by which skipped rows are counted, for example "no caption".
        detail: path of the image and the message of its codec.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason = reason

    def __str__(self) -> str:
        reason, detail = self.args
        return f"{reason}: {detail}" if detail else reason


class SkipReason(str):
    """Reason for which a row is skipped, with the path of its image as an example.

    It equals the reason without an example. A Counter therefore keeps the first example of each
    reason, also across workers and processes.
    """

    __slots__ = ("example",)

    example: str

    def __new__(cls, reason: str, example: str = "") -> "SkipReason":
        instance = super().__new__(cls, reason)
        instance.example = example
        return instance


class SkipCounts:
    """Numbers of rows that were read and that were skipped by reason, and of truncated captions."""

    def __init__(self) -> None:
        self.read = 0
        self.reasons: Counter[str] = Counter()
        self.truncated = 0

    def add(self, read: int, reasons: Mapping[str, int], truncated: int) -> None:
        self.read += read
        self.reasons.update(reasons)
        self.truncated += truncated

    @property
    def total(self) -> int:
        """Number of skipped rows."""
        return self.reasons.total()

    def state_dict(self) -> dict[str, Any]:
        reasons = {str(reason): count for reason, count in self.reasons.items()}  # no examples
        return {"read": self.read, "reasons": reasons, "truncated": self.truncated}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.read, self.truncated = state["read"], state["truncated"]
        self.reasons = Counter(state["reasons"])

    def __str__(self) -> str:
        """`50 of 900 rows read were skipped (each epoch counts again): 50 × no caption (1.png)`."""
        return (
            f"{self.total:,} of {self.read:,} rows read were skipped (each epoch counts again): "
            f"{format_counts(self.reasons)}"
        )


def format_counts(reasons: Mapping[str, int]) -> str:
    """Returns counts by reason on one line, the largest first, with the examples of reasons."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} × {reason}{_example(reason)}" for reason, count in ordered)


def _example(reason: str) -> str:
    example = getattr(reason, "example", "")
    return f" (such as {example})" if example else ""


def no_usable_rows(reasons: Mapping[str, int], rows: str = "the data") -> UserError:
    """Returns the error for rows of which none can be used.

    Args:
        rows: name of the rows, for the message.
    """
    return UserError(
        f"no row of {rows} can be used ({format_counts(reasons)}): fix the data or its settings"
    )
