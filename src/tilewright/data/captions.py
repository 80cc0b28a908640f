"""Captions among the values that a dataset stores."""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tilewright.data.skipping import format_counts
from tilewright.text_files import is_unicode

# Columns of a table, or fields of a JSON object, that hold captions unless the user names one.
CAPTION_COLUMNS = ("caption", "text")

NO_CAPTION = "no caption"
EMPTY_CAPTION = "empty caption"
NOT_TEXT = "caption is not text"
NOT_UNICODE = "caption is in an unknown encoding"

# Missing values of pandas, JSON and SQL after a conversion to text.
MISSING = frozenset({"nan", "NaN", "NaT", "<NA>", "None", "null", "NULL"})
# Categories of control and format characters, spaces, and marks that combine with a letter.
INVISIBLE = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp", "Mn", "Me"})


def find_captions(value: Any) -> tuple[list[str], Counter[str]]:
    """Returns the captions in a stored value, stripped, and counts its other values.

    A caption is a string with at least one visible character. Numbers, booleans, dictionaries,
    strings that a missing value was converted to, and halves of surrogate pairs are not text.

    Args:
        value: a caption or a list of captions.

    Returns:
        The captions, and the numbers of unusable ones by reason. An empty list is "no caption".
    """
    texts: list[str] = []
    defects: Counter[str] = Counter()
    values = value if isinstance(value, (list, tuple)) else [value]
    for item in values:
        if defect := _defect(item):
            defects[defect] += 1
        else:
            texts.append(item.strip())
    if not values:
        defects[NO_CAPTION] = 1
    return texts, defects


def caption_value(record: Mapping[str, Any], columns: Sequence[str]) -> Any:
    """Returns the first value among the columns that is not empty, or None."""
    return next((record[column] for column in columns if record.get(column)), None)


class DefectCounts:
    """Numbers of unusable captions by reason, with the place of the first one as an example."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.example = ""

    def add(self, place: str, reasons: Mapping[str, int]) -> None:
        if reasons and not self.reasons:
            self.example = place
        self.reasons.update(reasons)

    def __bool__(self) -> bool:
        return bool(self.reasons)

    def __str__(self) -> str:
        """`3 × no caption, 1 × empty caption, such as row 7`."""
        return f"{format_counts(self.reasons)}, such as {self.example}"


def _defect(value: Any) -> str | None:
    """Returns the reason why a value is not a caption, or None if it is one."""
    if value is None or value != value:  # NaN differs from itself
        return NO_CAPTION
    if isinstance(value, bytes):
        return NOT_UNICODE
    if not isinstance(value, str):
        return NOT_TEXT
    if value.strip() in MISSING:
        return NO_CAPTION
    if not any(unicodedata.category(letter) not in INVISIBLE for letter in value):
        return EMPTY_CAPTION
    return None if is_unicode(value) else NOT_TEXT
