"""Captions in text files: one per line, or one per file."""

import logging
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal, get_args

from tilewright.errors import UserError
from tilewright.text_files import split_lines

log = logging.getLogger(__name__)

CaptionsPerFile = Literal["auto", "one", "lines"]

HEADING = re.compile(r"[A-Z][\w -]{0,30}:(?=\s|$)")
BULLET = re.compile(r"(#{1,6}|[-*•])\s")
SENTENCE_BREAK = re.compile(r"[.!?][\"”’)]*\s+(?=\S)")
UNFINISHED = re.compile(r"[\w,;:(–—-]$")


def lines_are_captions(setting: CaptionsPerFile, texts: Mapping[str, str]) -> bool:
    """Returns True if each line is a caption, and False if each file is one caption.

    `auto` chooses one caption per file if at least half of the files with several lines read like
    one text. The log has one line about this choice.

    Args:
        setting: data.source.captions_per_file.
        texts: contents of text files by name.

    Raises:
        UserError: the setting is not possible.
    """
    if setting not in (choices := get_args(CaptionsPerFile)):
        raise UserError(
            f"data.source.captions_per_file={setting} is not possible: set it to "
            f"{', '.join(choices)}"
        )
    if setting != "auto":
        return setting == "lines"
    multiline = {name: text for name, text in texts.items() if len(_filled_lines(text)) > 1}
    continuous = [name for name, text in multiline.items() if reads_as_one_text(text)]
    if multiline and 2 * len(continuous) >= len(multiline):
        log.info(
            "each text file is one caption, because %d of %d with several lines read like one "
            "text, such as %s: data.source.captions_per_file=lines makes each line a caption",
            len(continuous), len(multiline), continuous[0],
        )  # fmt: skip
        return False
    if multiline:
        log.info(
            "each line of a text file is a caption, and %d file(s) have several lines, such as %s: "
            "data.source.captions_per_file=one makes each file one caption",
            len(multiline), next(iter(multiline)),
        )  # fmt: skip
    return bool(multiline)


def split_captions(text: str, per_line: bool) -> list[str]:
    """Returns the captions in the text of a file. The only caption of a file may be empty."""
    return _filled_lines(text) if per_line else ["\n".join(split_lines(text)).strip()]


def reads_as_one_text(text: str) -> bool:
    """Returns True if the lines look like parts of one text, and not like separate captions.

    These are signs of one text: a line such as `Lighting: soft`, a list, a sentence that continues
    in the next line, a line of three sentences, and a line of two sentences between empty lines.
    """
    lines = _filled_lines(text)
    headings = [match[0] if (match := HEADING.match(line)) else None for line in lines]
    if len({*headings}) > 1 or any(map(BULLET.match, lines)):
        return True
    for line, following in pairwise(lines):
        if UNFINISHED.search(line) and lines[0][0].isupper() and following[0].islower():
            return True
        if line.endswith((",", ";", ":")):
            return True
    has_paragraphs = len(lines) < len(split_lines(text.strip()))
    sentences = max(len(SENTENCE_BREAK.split(line)) for line in lines)
    return sentences >= (2 if has_paragraphs else 3)


def _filled_lines(text: str) -> list[str]:
    return [line.strip() for line in split_lines(text) if line.strip()]
