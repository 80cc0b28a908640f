"""Captions of the images in a folder, from metadata.jsonl, metadata.csv and metadata.tsv."""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property
from os.path import normpath
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tilewright.data.captions import DefectCounts, caption_value, find_captions
from tilewright.data.sources.listing import Listing
from tilewright.text_files import RECORD_SUFFIXES, read_records, require_column

METADATA = {f"metadata{suffix}" for suffix in RECORD_SUFFIXES}


def read_metadata(
    listing: Listing, images: Sequence[Path], columns: Sequence[str], encoding: str | None
) -> tuple[dict[Path, list[str]], list[str]]:
    """Returns the captions in the metadata files by image, and messages about unusable rows.

    An image with several rows has several captions.

    Args:
        columns: columns that may hold the caption, in order of preference.
        encoding: data.source.encoding.

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
        records = [
            _rename_columns(record, ("file_name", *columns))
            for record in read_records(file, encoding=encoding, remedy="set data.source.encoding")
        ]
        if records:
            existing = [column for record in records for column in record]
            hint = "rename the column with the names of the images, or add it"
            require_column(existing, ("file_name",), title, hint)
            hint = "set data.source.caption_column, or rename the column"
            require_column(existing, columns, title, hint)
        file_names = [record.get("file_name") for record in records]
        matches = names.match(file.parent, file_names)
        defects = DefectCounts()
        for number, (record, image) in enumerate(zip(records, matches, strict=True), start=1):
            texts, reasons = find_captions(caption_value(record, columns))
            defects.add(f"row {number}", reasons)
            if image is not None and texts:
                captions[image] |= dict.fromkeys(texts)
        if not records:
            problems.append(f"{title} has no rows")
        if None in matches:
            example = file_names[matches.index(None)]
            problems.append(
                f"{matches.count(None)} of {len(records)} rows of {title} do not name an image, "
                f"such as {_shorten(example)}: {names.explain(file, example)}"
            )
        if defects:
            problems.append(f"{title} has values that are not used as captions: {defects}")
    return {image: list(texts) for image, texts in captions.items()}, problems


class ImageNames:
    """Lookup of images by the names that people write for them.

    A name may differ from the path of its image if only one image can be meant. It may have another
    case, backslashes, a leading slash or URL encoding (`%20`), or lack the ending.
    """

    def __init__(self, images: Sequence[Path]):
        self.images = images

    def match(self, folder: Path, names: Sequence[Any]) -> list[Path | None]:
        """Returns the image of each name, or None if no image or several images match.

        Args:
            folder: folder that the names are relative to.
        """
        matches = [self._exact.get(normpath(folder / _as_text(name))) for name in names]
        exact = {*matches}  # another name cannot mean an image that has its own row
        for index, name in enumerate(names):
            if matches[index] is None and _as_text(name):
                candidates = self._candidates(folder, _as_text(name)) - exact
                matches[index] = candidates.pop() if len(candidates) == 1 else None
        return matches

    def explain(self, metadata: Path, name: Any) -> str:
        """Returns the reason why a name in a metadata file does not match, and a remedy."""
        text = _as_text(name)
        if not text:
            return "it is not a name, so write one in file_name"
        candidates = sorted(str(image) for image in self._candidates(metadata.parent, text))
        if len(candidates) > 1:
            names = " or ".join(Path(image).name for image in candidates[:2])
            return f"it may mean {names}, so write the whole name"
        if candidates:
            return f"another row names {Path(candidates[0]).name}, so name another image"
        if (metadata.parent / text).is_file():
            return "the file is not an image with the ending of a format that can be read"
        return f"there is no such file, so write file_name relative to {metadata.name}"

    def _candidates(self, folder: Path, name: str) -> set[Path | None]:
        path = name.replace("\\", "/").lstrip("/")
        return {
            image
            for spelling in (path, unquote(path))
            for image in self._similar.get(similar_name(normpath(folder / spelling)), ())
        }

    @cached_property
    def _exact(self) -> dict[str, Path]:
        return {str(image): image for image in self.images}

    @cached_property
    def _similar(self) -> dict[str, list[Path]]:
        similar = defaultdict(list)
        for image in self.images:
            for path in (image, image.with_suffix("")):
                similar[similar_name(str(path))].append(image)
        return similar


def _rename_columns(record: dict[str, Any], expected: Sequence[str]) -> dict[str, Any]:
    """Returns a record in which `File_Name` and ` Caption ` have the expected names.

    A column keeps its name if the record also has the expected one, or a second similar one.
    """
    similar = Counter(similar_name(column).strip() for column in record)
    names = {similar_name(name).strip(): name for name in expected}
    return {
        names[key]
        if (key := similar_name(column).strip()) in names and similar[key] == 1
        else column: value
        for column, value in record.items()
    }


def similar_name(path: str) -> str:
    """Returns a path normalized to one case and one Unicode form, for comparisons."""
    return unicodedata.normalize("NFC", path).casefold()


def _as_text(name: Any) -> str:
    """Returns a name as text. Numbers are names without an ending. Other values give ""."""
    is_number = isinstance(name, int) and not isinstance(name, bool)
    return str(name) if is_number or isinstance(name, str) else ""


def _shorten(value: Any) -> str:
    """Returns a value for a message, with at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
