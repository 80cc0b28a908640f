"""Filters of captioned images, including those of the paper (section 2, data collection).

A filter is any object with the methods of `Filter`. Configurations build the filters;
`filter=paper` selects those of the paper.
"""

import importlib
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from datasets import Dataset, Image
from datasets.fingerprint import Hasher

from tilewright.checks import check_number, check_whole
from tilewright.data.captions import find_captions
from tilewright.data.fingerprints import fingerprint_code, fingerprint_files
from tilewright.data.images import UnreadableImage, read_size
from tilewright.data.skipping import SkipRow, format_counts
from tilewright.errors import UserError

log = logging.getLogger(__name__)


class Filter:
    """Base class of filters. It keeps each pair.

    Attributes:
        reason: reason by which dropped pairs are counted.
    """

    reason: str

    def keeps_caption(self, caption: str) -> bool:
        """Returns True if the caption may be used."""
        return True

    def keeps_image(self, width: int, height: int) -> bool:
        """Returns True if an image of this size in pixels may be used."""
        return True


@dataclass(frozen=True)
class AspectRatio(Filter):
    """Keeps images whose longer side is at most `max_ratio` times the shorter one.

    The paper keeps aspect ratios in [1/2, 2].
    """

    max_ratio: float = 2.0
    reason = "aspect ratio"

    def __post_init__(self) -> None:
        check_number("data.filters.aspect.max_ratio", self.max_ratio, 1)

    def keeps_image(self, width: int, height: int) -> bool:
        return max(width, height) <= self.max_ratio * min(width, height)


@dataclass(frozen=True)
class CaptionLength(Filter):
    """Keeps captions of at least `min_words` words.

    The paper drops captions that are "too short" and does not give a number.
    """

    min_words: int = 2
    reason = "short caption"

    def __post_init__(self) -> None:
        check_whole("data.filters.length.min_words", self.min_words, 0)

    def keeps_caption(self, caption: str) -> bool:
        # In scripts without spaces, two letters count as a word.
        parts = caption.split()
        wide = sum(ord(letter) >= 0x3040 for letter in caption)
        return max(len(parts), wide // 2) >= self.min_words


@dataclass(frozen=True)
class Boilerplate(Filter):
    """Keeps captions in which at least half of the letters are outside of boilerplate phrases.

    Args:
        phrases: regular expressions, case-insensitive. `<date>` in a phrase matches a date in the
            common notations. The paper's example is "photographed on <date>".
    """

    phrases: Sequence[str]
    reason = "boilerplate"

    def __post_init__(self) -> None:
        object.__setattr__(self, "phrases", tuple(self.phrases))
        _pattern(self.phrases)

    def keeps_caption(self, caption: str) -> bool:
        remaining = _count_letters(_pattern(self.phrases).sub("", caption))
        return remaining > 0 and 2 * remaining >= _count_letters(caption)


MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?"
DATE = (
    rf"(?:\d{{1,4}}[-/.]\d{{1,2}}[-/.]\d{{1,4}}|\d{{1,2}}(?:st|nd|rd|th)? (?:of )?{MONTH},? \d{{4}}"
    rf"|{MONTH} \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}|{MONTH} \d{{4}}|\d{{4}})"
)


@lru_cache(maxsize=8)
def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    alternatives = "|".join(f"(?:{phrase.replace('<date>', DATE)})" for phrase in phrases)
    try:
        return re.compile(alternatives, re.IGNORECASE)
    except re.error as error:
        raise UserError(
            f"data.filters.boilerplate.phrases has an invalid regular expression ({error}): "
            "correct it"
        ) from error


@dataclass(frozen=True)
class English(Filter):
    """Keeps captions unless CLD3, the paper's classifier, reliably detects another language.

    CLD3 is rarely reliable for a few words.
    """

    reason = "not English"

    def __post_init__(self) -> None:
        _classifier()  # reports a missing package before any data is read

    def keeps_caption(self, caption: str) -> bool:
        result = _classifier().FindLanguage(text=caption)
        return result.language == "en" or not result.is_reliable


@lru_cache(maxsize=1)
def _classifier() -> Any:
    try:
        package = importlib.import_module("gcld3")
    except ImportError as error:
        raise UserError(
            "the filter of English captions needs the package gcld3: "
            "pip install 'tilewright[filters]', or remove the filter with data.filters.english=null"
        ) from error
    return package.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=1000)


def usable_captions(value: Any, filters: Sequence[Filter] = (), required: bool = True) -> list[str]:
    """Returns the captions of a row that are text and pass the filters.

    Args:
        value: a caption or a list of captions, as stored.
        filters: filters of captions.
        required: skip a row without a caption. If false, its caption is "".

    Raises:
        SkipRow: no caption can be used.
    """
    texts, defects = find_captions(value)
    if not texts and not required:
        return [""]
    if not texts:
        raise SkipRow(next(iter(defects)))
    for caption_filter in filters:
        texts = [text for text in texts if caption_filter.keeps_caption(text)]
        if not texts:
            raise SkipRow(caption_filter.reason)
    return texts


def check_image_size(width: int, height: int, filters: Sequence[Filter]) -> None:
    """Raises SkipRow unless all filters keep an image of this size."""
    for image_filter in filters:
        if not image_filter.keeps_image(width, height):
            raise SkipRow(image_filter.reason)


def filter_table(
    name: str, rows: Dataset, filters: Sequence[Filter], require_captions: bool = True
) -> Dataset:
    """Returns the rows that all filters keep, and logs the number of rows that each one drops.

    Only the headers of images are read. Unreadable images are kept here and skipped later.
    `datasets` caches the result on disk, until the rows, the image files, the filters or the code
    of their modules change.

    Args:
        name: name of the split, for messages.
        require_captions: drop rows without a caption.

    Raises:
        UserError: no row is left.
    """
    if not len(rows):
        return rows
    encoded = rows.cast_column("image", Image(decode=False))
    reasons = encoded.map(
        _drop_reasons,
        batched=True,
        batch_size=256,
        remove_columns=rows.column_names,
        fn_kwargs={"filters": list(filters), "require_captions": require_captions},
        new_fingerprint=_fingerprint(encoded, filters, require_captions),
        desc="Filtering",
    )["reason"]
    reasons = np.array(reasons)
    dropped = Counter(reason for reason in reasons.tolist() if reason)
    if not dropped:
        return rows
    log.info(
        "%s: %d of %d rows dropped: %s", name, dropped.total(), len(rows), format_counts(dropped)
    )
    if dropped.total() == len(rows):
        raise UserError(
            f"the filters keep no row of {name} ({format_counts(dropped)}): relax data.filters"
        )
    return rows.select(np.flatnonzero(reasons == ""))


def _fingerprint(rows: Dataset, filters: Sequence[Filter], require_captions: bool) -> str | None:
    """Returns the key of the cached result, or None if a filter cannot be pickled."""
    code = fingerprint_code(Filter(), *filters)
    try:
        state = [rows._fingerprint, fingerprint_files(rows), list(filters), code, require_captions]
        return Hasher.hash(state)
    except Exception:  # pickling raises many classes. `datasets` then warns and caches nothing.
        return None


def _drop_reasons(
    batch: dict[str, list], filters: Sequence[Filter], require_captions: bool
) -> dict[str, list[str]]:
    pairs = zip(batch["image"], batch["caption"], strict=True)
    return {"reason": [_drop_reason(*pair, filters, require_captions) for pair in pairs]}


def _drop_reason(
    record: Mapping[str, Any] | None,
    caption: Any,
    filters: Sequence[Filter],
    require_captions: bool,
) -> str:
    """Returns the reason for dropping a row, or "" to keep it."""
    try:
        usable_captions(caption, filters, require_captions)
        check_image_size(*read_size(record), filters)
    except UnreadableImage:
        return ""
    except SkipRow as skip:
        return skip.reason
    return ""


def _count_letters(text: str) -> int:
    return sum(map(str.isalnum, text))
