"""Captions of the images in a folder, from metadata files or from a text file beside each image."""

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from os.path import normpath
from pathlib import Path
from typing import Any

from tilewright.data.sources.listing import Listing
from tilewright.errors import UserError

CAPTION_COLUMNS = ("caption", "text")
METADATA = ("metadata.jsonl", "metadata.csv")


def read_captions(
    listing: Listing, images: Sequence[Path], caption_column: str | None
) -> dict[Path, list[str]]:
    """Returns the captions of each image that has any, in the order of the images."""
    metadata = _read_metadata(listing, caption_column)
    captions = {image: metadata.get(str(image)) or _read_text_file(image) for image in images}
    return {image: texts for image, texts in captions.items() if texts}


def _read_metadata(listing: Listing, caption_column: str | None) -> dict[str, list[str]]:
    """Returns captions by the absolute path of the image."""
    captions: dict[str, list[str]] = defaultdict(list)
    for file in listing.files:
        if file.name not in METADATA:
            continue
        name = file.relative_to(listing.root.parent)
        for record in _read_records(file):
            column = caption_column or next(
                (column for column in CAPTION_COLUMNS if column in record), CAPTION_COLUMNS[0]
            )
            for required in ("file_name", column):
                if required not in record:
                    hint = "add it" if required == "file_name" else "set caption_column"
                    raise UserError(
                        f"{name} has no column {required!r}, only {', '.join(record)}: {hint}"
                    )
            value = record[column] if isinstance(record[column], list) else [record[column]]
            texts = [str(text).strip() for text in value if text is not None]
            captions[normpath(file.parent / record["file_name"])] += filter(None, texts)
    return captions


def _read_records(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        if file.suffix == ".csv":
            yield from csv.DictReader(lines)
            return
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                raise UserError(f"{file}, line {number} is not a JSON object: fix or remove it")
            yield record


def _read_text_file(image: Path) -> list[str]:
    """Returns the captions in the .txt file beside an image, or [] if there is none."""
    try:
        text = image.with_suffix(".txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]
