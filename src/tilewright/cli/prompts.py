"""Captions to generate images for, from the command line or from a file."""

import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilewright.data.captions import CAPTION_COLUMNS, DefectCounts, caption_value, find_captions
from tilewright.errors import UserError
from tilewright.text_files import (
    RECORD_SUFFIXES,
    decode_text,
    read_records,
    read_text,
    require_column,
    split_lines,
)

log = logging.getLogger(__name__)

PROMPT_COLUMNS = (*CAPTION_COLUMNS, "prompt")
ID_COLUMN = re.compile(r"(?i:(^|[_ -])u?id$)|[a-z]I[dD]$")
STDIN = "-"


@dataclass(frozen=True)
class Prompt:
    """A caption, and its origin.

    Args:
        caption: the text.
        origin: keys of its images' records: in a file, the index of its line or row, from 1, and
            the id columns of its row; of a completed caption, the beginning that was typed.
    """

    caption: str
    origin: dict[str, Any] = field(default_factory=dict)


def read_prompts(path: str, column: str | None = None) -> list[Prompt]:
    """Reads captions from a file. Lines and rows without a caption are counted in a warning.

    Args:
        path: a .txt file with one caption per line, a .jsonl, .csv or .tsv file, or `-` for
            standard input, which is read as lines.
        column: column of the captions. None takes the first of `PROMPT_COLUMNS` that is filled.

    Raises:
        UserError: the file cannot be read, or has no captions or no such column.
    """
    name = "standard input" if path == STDIN else path
    is_table = Path(path).suffix.lower() in RECORD_SUFFIXES
    if not is_table and column is not None:
        raise UserError(f"{name} is not a table with columns: leave caption_column={column} out")
    values = _read_rows(Path(path), column) if is_table else _read_lines(path, name)
    prompts: list[Prompt] = []
    defects = DefectCounts()
    for value, origin in values:
        texts, reasons = find_captions(value)
        unit, number = next(iter(origin.items()))
        defects.add(f"{unit} {number}", reasons)
        prompts += [Prompt(text, origin) for text in texts]
    if not prompts:
        raise UserError(f"{name} has no captions: write one per line, or one per row")
    if defects:
        log.warning("%s has no caption in some places, which are left out: %s", name, defects)
    return prompts


def _read_lines(path: str, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if path != STDIN and Path(path).suffix.lower() not in {"", ".txt"}:
        raise UserError(f"prompts={path} is not .txt, {', '.join(RECORD_SUFFIXES)} or -: name one")
    text = decode_text(sys.stdin.buffer.read(), name) if path == STDIN else read_text(Path(path))
    for number, line in enumerate(split_lines(text.rstrip("\r\n")), start=1):
        yield line, {"line": number}


def _read_rows(path: Path, column: str | None) -> Iterator[tuple[Any, dict[str, Any]]]:
    columns = PROMPT_COLUMNS if column is None else (column,)
    records = list(read_records(path))
    if records:
        existing = [name for record in records for name in record]
        require_column(existing, columns, str(path), "set caption_column=NAME")
    for number, record in enumerate(records, start=1):
        ids = {name: value for name, value in record.items() if ID_COLUMN.search(name)}
        yield caption_value(record, columns), {"row": number, **ids}
