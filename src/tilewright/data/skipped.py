"""Rows that cannot be used: why, and how many of each kind."""

from collections import Counter
from collections.abc import Mapping
from typing import Any


class Unusable(Exception):  # noqa: N818
    """A row that is skipped.

    Args:
        kind: what is wrong, in the words by which such rows are counted.
        detail: which picture, and what its codec says.
    """

    def __init__(self, kind: str, detail: str = ""):
        super().__init__(kind, detail)
        self.kind = kind

    def __str__(self) -> str:
        kind, detail = self.args
        return f"{kind}: {detail}" if detail else kind


class Skips:
    """How many rows of a training were read, and how many of them were skipped, by kind."""

    def __init__(self) -> None:
        self.read = 0
        self.kinds: Counter[str] = Counter()

    def add(self, read: int, kinds: Mapping[str, int]) -> None:
        self.read += read
        self.kinds.update(kinds)

    @property
    def total(self) -> int:
        return self.kinds.total()

    def state_dict(self) -> dict[str, Any]:
        return {"read": self.read, "kinds": dict(self.kinds)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.read, self.kinds = state["read"], Counter(state["kinds"])

    def __str__(self) -> str:
        """`500 of 10,000 rows were skipped: 300 picture is cut short, 200 no caption`."""
        return f"{self.total:,} of {self.read:,} rows were skipped: {listed(self.kinds)}"


def listed(kinds: Mapping[str, int]) -> str:
    """Counts by kind on one line, the largest first."""
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} × {kind}" for kind, count in ordered)
