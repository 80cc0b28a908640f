"""Captions of the images in a folder, from a file beside each image."""

import json
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from tilewright.data.captions import DefectCounts, caption_value, find_captions
from tilewright.data.sources.folder_metadata import similar_name
from tilewright.data.sources.listing import Listing
from tilewright.data.sources.text_captions import (
    CaptionsPerFile,
    lines_are_captions,
    split_captions,
)
from tilewright.text_files import decode_texts

TEXT_SUFFIXES = (".txt", ".caption")
SUFFIXES = (*TEXT_SUFFIXES, ".json")


def read_sidecars(
    listing: Listing,
    images: Sequence[Path],
    captioned: Container[Path],
    columns: Sequence[str],
    captions_per_file: CaptionsPerFile,
    encoding: str | None,
) -> tuple[dict[Path, list[str]], list[str]]:
    """Returns the captions in files beside images, and messages about files that are not used.

    The caption of `1.png` comes from the first of `1.png.txt`, `1.txt`, `1.png.caption`,
    `1.caption`, `1.png.json` and `1.json` that has one.

    Args:
        captioned: images that already have captions.
        columns: fields of a .json that may hold the caption, in order of preference.
        captions_per_file: data.source.captions_per_file.
        encoding: data.source.encoding.
    """
    sidecars = _sidecars_by_image(listing, images)
    needed = {file for image in images if image not in captioned for file in sidecars[image]}
    texts, unreadable = _read_texts(sorted(needed), encoding)
    plain = {file: text for file, text in texts.items() if _is_text(file)}
    per_line = lines_are_captions(
        captions_per_file, {_name(file, listing): text for file, text in plain.items()}
    )
    captions: dict[Path, list[str]] = {}
    unused: list[Path] = []
    defects = DefectCounts()
    without_caption: list[Path] = []
    for image in images:
        for file in sidecars[image]:
            if image in captioned or image in captions:
                unused.append(file)
            elif file in texts:
                values = (
                    split_captions(texts[file], per_line)
                    if _is_text(file)
                    else _parse_json(texts[file], columns)
                )
                if values is None:
                    without_caption.append(file)
                usable, reasons = find_captions(values)
                if values is not None:
                    defects.add(_name(file, listing), reasons)
                if usable:
                    captions[image] = usable
    matched = {file for files in sidecars.values() for file in files}
    unmatched = [file for file in listing.files if _is_text(file) and file not in matched]
    problems = [
        f"{len(files)} text file(s) {reason}, such as {_name(files[0], listing)}: {advice}"
        for files, reason, advice in (
            (unreadable, "cannot be read", "make them readable, in UTF-8 or data.source.encoding"),
            (
                without_caption,
                f"are not a JSON object with a caption in {' or '.join(columns)}",
                "correct them, or set data.source.caption_column",
            ),
            (unmatched, "do not match an image", "give an image and its text file the same name"),
            (
                [file for file in unused if _is_text(file)],
                "are not used",
                "the image has a caption in the metadata or in another text file",
            ),
        )
        if files
    ]
    if defects:
        problems.append(f"text files have values that are not used as captions: {defects}")
    return captions, problems


def _sidecars_by_image(listing: Listing, images: Sequence[Path]) -> dict[Path, list[Path]]:
    """Returns the files beside each image that may hold its captions, in order of preference."""
    files = [file for file in listing.files if file.suffix.lower() in SUFFIXES]
    exact = {str(file): file for file in files}
    names = {
        image: [
            str(stem) + suffix for suffix in SUFFIXES for stem in (image, image.with_suffix(""))
        ]
        for image in images
    }
    own = {name for candidates in names.values() for name in candidates}
    # A file with the exact name of an image is not that of an image in another case.
    similar = {similar_name(name): file for name, file in exact.items() if name not in own}
    return {
        image: [
            file
            for name in candidates
            if (file := exact.get(name) or similar.get(similar_name(name))) is not None
        ]
        for image, candidates in names.items()
    }


def _read_texts(files: Sequence[Path], encoding: str | None) -> tuple[dict[Path, str], list[Path]]:
    """Returns the texts of files that are not blank, and the files that cannot be read."""
    contents: dict[Path, bytes] = {}
    unreadable: list[Path] = []
    for file in files:
        try:
            contents[file] = file.read_bytes()
        except OSError:
            unreadable.append(file)
    texts = decode_texts(contents, encoding)
    unreadable += [file for file in contents if file not in texts]
    return {file: text for file, text in texts.items() if text.strip()}, sorted(unreadable)


def _parse_json(text: str, columns: Sequence[str]) -> Any:
    """Returns the caption in a .json file, or None if there is none."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return caption_value(record, columns) if isinstance(record, dict) else None


def _is_text(file: Path) -> bool:
    return file.suffix.lower() in TEXT_SUFFIXES


def _name(file: Path, listing: Listing) -> str:
    return repr(str(file.relative_to(listing.root)))
