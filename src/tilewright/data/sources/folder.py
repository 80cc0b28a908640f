"""Captioned pictures in a folder of the user's own."""

import csv
import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from os.path import normpath
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, List, Value

from tilewright.data.splits import CANONICAL, cut, position, settle
from tilewright.errors import UserError

log = logging.getLogger(__name__)

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
CAPTION_COLUMNS = ("caption", "text")


@dataclass(frozen=True)
class _Row:
    path: Path
    name: str  # relative to the folder: what identifies the picture, wherever the folder lies
    captions: list[str]


@dataclass(frozen=True)
class FolderSource:
    """Pictures in a folder, captioned in either of two ways.

    - a `metadata.jsonl` or `metadata.csv` in the folder, or in folders below it: `file_name`,
      relative to the metadata file, and a caption (or, in JSON, a list of captions);
    - beside each picture a `.txt` of the same stem, in which each line is a caption.

    Folders `train`, `validation` and `test` directly below are the splits if they are there.
    Pictures without a caption are skipped, with one warning that counts them.

    Args:
        caption_column: the metadata's column of captions; None takes `caption` or `text`.
        validation_fraction: the share of pictures that is held out when there is neither a
            `validation` nor a `test` folder; a hash of (seed, file name) chooses them.
    """

    path: str
    caption_column: str | None = None
    validation_fraction: float = 0.05
    seed: int = 0

    def load(self) -> DatasetDict:
        """Load the splits; see `Source.load`. No picture is opened."""
        root = Path(self.path).expanduser().absolute()
        if not root.is_dir():
            raise UserError(f"no folder at {self.path!r}: give the path of a folder of pictures")
        pictures = sorted(
            file
            for file in root.rglob("*")
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        )
        if not pictures:
            raise UserError(f"no pictures in {self.path!r}: it needs {', '.join(sorted(SUFFIXES))}")

        splits: dict[str, list[_Row]] = defaultdict(list)
        captions = self._read_metadata(root)
        for picture in pictures:
            texts = captions.get(str(picture)) or _captions_beside(picture)
            if texts:
                name = picture.relative_to(root)
                split = CANONICAL.get(name.parts[0].lower(), "train")
                splits[split].append(_Row(picture, name.as_posix(), texts))
        captioned = sum(map(len, splits.values()))
        if not captioned:
            raise UserError(
                f"no captions in {self.path!r}: add a metadata.jsonl (file_name, caption), or "
                "a .txt of the same name beside each picture"
            )
        if missing := len(pictures) - captioned:
            log.warning(
                "%d of %d pictures in %s have no caption and are skipped",
                missing, len(pictures), self.path,
            )  # fmt: skip

        found = settle(
            splits, self._halve, f"folder {self.path!r}", "put pictures in a folder 'train' there"
        )
        single = all(len(row.captions) == 1 for rows in found.values() for row in rows)
        return DatasetDict({split: _dataset(rows, single) for split, rows in found.items()})

    def _read_metadata(self, root: Path) -> dict[str, list[str]]:
        """Captions by the picture's absolute path."""
        captions: dict[str, list[str]] = defaultdict(list)
        files = (file for form in ("jsonl", "csv") for file in root.rglob(f"metadata.{form}"))
        for file in sorted(files):
            name = file.relative_to(root.parent)
            for row in _read_rows(file):
                column = self.caption_column or next(
                    (column for column in CAPTION_COLUMNS if column in row), CAPTION_COLUMNS[0]
                )
                for needed in ("file_name", column):
                    if needed not in row:
                        way_out = "" if needed == "file_name" else "; set caption_column"
                        raise UserError(
                            f"{name} has no column {needed!r}: it has {', '.join(row)}{way_out}"
                        )
                value = row[column] if isinstance(row[column], list) else [row[column]]
                texts = [str(text).strip() for text in value if text is not None]
                captions[normpath(file.parent / row["file_name"])] += filter(None, texts)
        return captions

    def _halve(self, rows: list[_Row]) -> tuple[list[_Row], list[_Row]]:
        positions = [position(self.seed, row.name) for row in rows]
        limit = cut(positions, self.validation_fraction, f"folder {self.path!r}")
        pairs = list(zip(rows, positions, strict=True))
        return [row for row, at in pairs if at >= limit], [row for row, at in pairs if at < limit]


def _read_rows(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        if file.suffix == ".csv":
            yield from csv.DictReader(lines)
            return
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise UserError(f"{file}, line {number} is not a JSON object: mend or remove it")
            yield row


def _captions_beside(picture: Path) -> list[str]:
    try:
        text = picture.with_suffix(".txt").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def _dataset(rows: list[_Row], single: bool) -> Dataset:
    caption = Value("string") if single else List(Value("string"))
    return Dataset.from_dict(
        {
            "image": [str(row.path) for row in rows],
            "caption": [row.captions[0] if single else row.captions for row in rows],
        },
        features=Features({"image": Image(), "caption": caption}),
    )
