"""Captions of the images in a folder, from metadata.jsonl, metadata.csv and metadata.tsv."""

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from os.path import normpath
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tilewright.data.captions import DefectCounts, find_captions
from tilewright.data.sources.listing import Listing
from tilewright.errors import UserError
from tilewright.text_files import RECORD_SUFFIXES, read_records

METADATA = {f"metadata{suffix}" for suffix in RECORD_SUFFIXES}


def read_metadata(
    listing: Listing, images: Sequence[Path], columns: Sequence[str]
) -> tuple[dict[Path, list[str]], list[str]]:
    """Returns the captions in the metadata files by image, and lines about rows without an image.

    Several rows of one image are its captions.

    Args:
        columns: columns that a caption may be in, the first one first.

    Raises:
        UserError: a file is malformed or lacks a column.
    """
    captions: dict[Path, dict[str, None]] = defaultdict(dict)
    problems: list[str] = []
    names = ImageNames(images)
    for file in listing.files:
        if file.name.lower() not in METADATA:
            continue
        title = str(file.relative_to(listing.root.parent))
        records = list(read_records(file))
        _check_columns(records, columns, title)
        file_names = [record.get("file_name") for record in records]
        found = names.find_all(file.parent, file_names)
        defects = DefectCounts()
        for number, (record, image) in enumerate(zip(records, found, strict=True), start=1):
            texts, reasons = find_captions(caption_value(record, columns))
            defects.add(f"row {number}", reasons)
            if image is not None and texts:
                captions[image] |= dict.fromkeys(texts)
        if not records:
            problems.append(f"{title} has no rows")
        if None in found:
            example = file_names[found.index(None)]
            problems.append(
                f"{found.count(None)} of {len(records)} rows of {title} do not name an image, such "
                f"as {_shorten(example)}: write file_name relative to the folder of {file.name}"
            )
        if defects:
            problems.append(f"{title} has values that are not used as captions: {defects}")
    return {image: list(texts) for image, texts in captions.items()}, problems


def caption_value(record: dict[str, Any], columns: Sequence[str]) -> Any:
    """Returns the value in the first of the columns that is filled."""
    return next((record[column] for column in columns if record.get(column)), None)


class ImageNames:
    """Images by the names that people write for them.

    A name that differs from the image's own path is accepted if it can only mean one image: another
    case, a missing ending, backslashes, a leading slash, or the encoding of addresses (`%20`).
    """

    def __init__(self, images: Sequence[Path]):
        self.images = images

    def find_all(self, folder: Path, names: Sequence[Any]) -> list[Path | None]:
        """Returns the image of each name, or None for a name of no image or of several.

        Args:
            folder: folder that the names are relative to.
        """
        found = [self._exact.get(normpath(folder / _text(name))) for name in names]
        taken = {*found}  # an image with a row of its own cannot be meant by another name
        for index, name in enumerate(names):
            if found[index] is None and _text(name):
                candidates = self._candidates(folder, _text(name)) - taken
                found[index] = candidates.pop() if len(candidates) == 1 else None
        return found

    def _candidates(self, folder: Path, name: str) -> set[Path | None]:
        path = name.replace("\\", "/").lstrip("/")
        return {
            image
            for form in (path, unquote(path))
            for image in self._similar.get(similar_name(normpath(folder / form)), ())
        }

    @cached_property
    def _exact(self) -> dict[str, Path]:
        return {str(image): image for image in self.images}

    @cached_property
    def _similar(self) -> dict[str, list[Path]]:
        similar = defaultdict(list)
        for image in self.images:
            for form in (image, image.with_suffix("")):
                similar[similar_name(str(form))].append(image)
        return similar


def similar_name(path: str) -> str:
    """Returns a form of a path that is the same in any case and any Unicode normalization."""
    return unicodedata.normalize("NFC", path).casefold()


def _text(name: Any) -> str:
    """Returns a name as text. Numbers are names without an ending. Returns "" for other values."""
    is_number = isinstance(name, int) and not isinstance(name, bool)
    return str(name) if is_number or isinstance(name, str) else ""


def _shorten(value: Any) -> str:
    """Returns a value for a message, with at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _check_columns(records: list[dict[str, Any]], columns: Sequence[str], title: str) -> None:
    existing = {column: None for record in records for column in record}
    for choices, hint in ((("file_name",), "add it"), (columns, "set data.source.caption_column")):
        if records and not any(choice in existing for choice in choices):
            raise UserError(
                f"{title} has no column {choices[0]!r}, only {', '.join(existing)}: {hint}"
            )
