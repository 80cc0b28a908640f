"""Which pairs are left out of a data set: the paper's filters (section 2, data collection).

A filter is any object with the methods of `Filter`; a configuration builds them, and `filter=paper`
chooses those of the paper.
"""

import importlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from datasets import Dataset, Image

from tilewright.data.images import UnreadableImage, size
from tilewright.data.skipped import Unusable
from tilewright.errors import UserError

NO_CAPTION = "no caption"
EMPTY_CAPTION = "empty caption"
NO_TEXT = "caption is no text"


class Filter:
    """What a pair has to be like; `kind` is what those that are not are counted as."""

    kind: str

    def keeps_caption(self, caption: str) -> bool:
        return True

    def keeps_picture(self, width: int, height: int) -> bool:
        return True


@dataclass(frozen=True)
class AspectRatio(Filter):
    """The longer side is at most `most` times the shorter: 2 is the paper's [1/2, 2]."""

    most: float = 2.0
    kind = "aspect ratio"

    def keeps_picture(self, width: int, height: int) -> bool:
        return max(width, height) <= self.most * min(width, height)


@dataclass(frozen=True)
class CaptionLength(Filter):
    """At least so many words. The paper drops what is "too short" and does not say how short."""

    words: int = 2
    kind = "short caption"

    def keeps_caption(self, caption: str) -> bool:
        # Words of scripts without spaces are counted as their letters, two to a word.
        parts = caption.split()
        wide = sum(ord(letter) >= 0x3040 for letter in caption)
        return max(len(parts), wide // 2) >= self.words


@dataclass(frozen=True)
class Boilerplate(Filter):
    """A caption does not consist primarily of such phrases: half of its letters are its own.

    Args:
        phrases: regular expressions, whatever the case. The paper has "photographed on <date>" for
            an example; <date> in a phrase stands for a date in the usual notations.
    """

    phrases: Sequence[str]
    kind = "boilerplate"

    def __post_init__(self) -> None:
        object.__setattr__(self, "phrases", tuple(self.phrases))
        _pattern(self.phrases)

    def keeps_caption(self, caption: str) -> bool:
        left = _letters(_pattern(self.phrases).sub("", caption))
        return left > 0 and 2 * left >= _letters(caption)


MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
DATE = (
    rf"(?:\d{{1,4}}[-/.]\d{{1,2}}[-/.]\d{{1,4}}|\d{{1,2}}(?:st|nd|rd|th)? (?:of )?{MONTH},? \d{{4}}"
    rf"|{MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}|{MONTH} \d{{4}}|\d{{4}})"
)


@lru_cache(maxsize=8)
def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    one_of = "|".join(f"(?:{phrase.replace('<date>', DATE)})" for phrase in phrases)
    try:
        return re.compile(one_of, re.IGNORECASE)
    except re.error as error:
        raise UserError(f"a phrase of boilerplate is no regular expression: {error}") from error


@dataclass(frozen=True)
class English(Filter):
    """The classifier of the paper, CLD3, does not take the caption for another language.

    It is seldom sure of a few words; only where it is, the caption is dropped.
    """

    kind = "not English"

    def __post_init__(self) -> None:
        _classifier()  # a package that is missing is told before anything is read

    def keeps_caption(self, caption: str) -> bool:
        found = _classifier().FindLanguage(text=caption)
        return found.language == "en" or not found.is_reliable


@lru_cache(maxsize=1)
def _classifier() -> Any:
    try:
        package = importlib.import_module("gcld3")
    except ImportError as error:
        raise UserError(
            "the filter of English captions needs a package: pip install 'tilewright[filters]', "
            "or leave it out by ~data.filters.english"
        ) from error
    return package.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=1000)


def captions_of(value: Any, filters: Sequence[Filter] = ()) -> list[str]:
    """The captions of a row that can be used, of one or several.

    Raises:
        Unusable: there is none.
    """
    values = value if isinstance(value, (list, tuple)) else [value]
    texts = [text for text in values if isinstance(text, str) and text.strip()]
    if not texts:
        kinds = [
            EMPTY_CAPTION if isinstance(text, str) else NO_CAPTION if text is None else NO_TEXT
            for text in values
        ]
        raise Unusable(next(iter(kinds), NO_CAPTION))
    for one in filters:
        texts = [text for text in texts if one.keeps_caption(text)]
        if not texts:
            raise Unusable(one.kind)
    return texts


def check_picture(width: int, height: int, filters: Sequence[Filter]) -> None:
    """Raises Unusable unless the filters keep a picture of that size."""
    for one in filters:
        if not one.keeps_picture(width, height):
            raise Unusable(one.kind)


def apply(rows: Dataset, filters: Sequence[Filter]) -> tuple[Dataset, Counter[str]]:
    """The rows that all filters keep, and how many were dropped by each.

    Pictures are read as far as their headers; what cannot be read is kept, to be counted as such.
    The choice is kept on disk by `datasets`, as that of any map is.
    """
    kinds = rows.cast_column("image", Image(decode=False)).map(
        _kinds,
        batched=True,
        batch_size=256,
        remove_columns=rows.column_names,
        fn_kwargs={"filters": list(filters)},
        desc="Filtering",
    )["kind"]
    kinds = np.array(kinds)
    dropped = Counter(kind for kind in kinds.tolist() if kind)
    return (rows.select(np.flatnonzero(kinds == "")) if dropped else rows), dropped


def _kinds(batch: dict[str, list], filters: Sequence[Filter]) -> dict[str, list[str]]:
    pairs = zip(batch["image"], batch["caption"], strict=True)
    return {"kind": [_kind(record, caption, filters) for record, caption in pairs]}


def _kind(record: Mapping[str, Any] | None, caption: Any, filters: Sequence[Filter]) -> str:
    try:
        captions_of(caption, filters)
        check_picture(*size(record), filters)
    except UnreadableImage:
        return ""
    except Unusable as unusable:
        return unusable.kind
    return ""


def _letters(text: str) -> int:
    return sum(map(str.isalnum, text))
