"""Warnings about captions that are longer than a text tokenizer's length."""

import logging
from collections.abc import Sequence

from tilewright.data.text_tokenizer import TextTokenizer

log = logging.getLogger(__name__)

SHOWN_CHARACTERS = 40  # of a caption, before its cut and after it
_logged: set[tuple[str, str]] = set()  # parts of the cut captions that a warning has named


def warn_of_truncation(tokenizer: TextTokenizer, captions: Sequence[str]) -> None:
    """Logs one line about captions of which a prior reads only a part, each of them once."""
    cut = _cut_captions(tokenizer, captions)
    new = [parts for parts in cut if parts not in _logged]
    if new:
        log.warning(_describe(tokenizer, new))
    _logged.update(new)


def truncation_warning(tokenizer: TextTokenizer, captions: Sequence[str]) -> str | None:
    """Returns a line about captions of which a prior reads only a part, or None without any."""
    cut = _cut_captions(tokenizer, captions)
    return _describe(tokenizer, cut) if cut else None


def _cut_captions(tokenizer: TextTokenizer, captions: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the two parts of each caption that is cut."""
    parts = map(tokenizer.split_at_length, captions)
    return [(kept, dropped.strip()) for kept, dropped in parts if dropped.strip()]


def _describe(tokenizer: TextTokenizer, cut: list[tuple[str, str]]) -> str:
    kept, dropped = cut[0]
    count = len(cut)
    subject = "1 caption is" if count == 1 else f"{count} captions are"
    example = "it" if count == 1 else "for example, one"
    return (
        f"{subject} longer than {tokenizer.length} text tokens and cut: {example} keeps "
        f"{_shorten(kept, from_end=True)!r} and drops {_shorten(dropped)!r}"
    )


def _shorten(text: str, from_end: bool = False) -> str:
    """Returns at most `SHOWN_CHARACTERS` from the beginning or from the end of a text."""
    if len(text) <= SHOWN_CHARACTERS:
        return text
    return f"…{text[-SHOWN_CHARACTERS:]}" if from_end else f"{text[:SHOWN_CHARACTERS]}…"
