"""Captioned images in a folder."""

import logging
import mimetypes
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, Image, List, Value

from tilewright.data.images import HEIF_SUFFIXES, IMAGE_SUFFIXES
from tilewright.data.sources.folder_captions import read_captions
from tilewright.data.sources.listing import Listing, list_files
from tilewright.data.sources.splits import (
    NAME_TO_SPLIT,
    hash_position,
    resolve_splits,
    validation_limit,
)
from tilewright.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _CaptionedFile:
    path: Path
    name: str  # relative to the folder, so that moving the folder does not change the splits
    captions: list[str]


@dataclass(frozen=True)
class FolderSource:
    """Images in a folder, captioned in one of two ways.

    - A `metadata.jsonl` or `metadata.csv` in the folder or below it. It has the columns
      `file_name`, relative to the metadata file, and a caption (in JSON also a list of captions).
    - A `.txt` file with the stem of each image, one caption per line.

    The folders `train`, `validation` and `test` directly below are the splits, if they exist.
    Images without a caption are skipped, and one warning counts them.

    Args:
        caption_column: column of the captions in the metadata. None uses `caption` or `text`.
        validation_fraction: share of the images to hold out if there is neither a `validation`
            nor a `test` folder. A hash of the seed and the file name chooses them.
        seed: seed of that choice.
    """

    path: str
    caption_column: str | None = None
    validation_fraction: float = 0.05
    seed: int = 0

    def load(self) -> DatasetDict:
        """Loads the splits without opening an image. See `Source.load`."""
        root = Path(self.path).expanduser().absolute()
        listing = self._list_files(root)
        images = self._select_images(listing)
        splits: dict[str, list[_CaptionedFile]] = defaultdict(list)
        captions = read_captions(listing, images, self.caption_column)
        for image, texts in captions.items():
            name = image.relative_to(root)
            split = NAME_TO_SPLIT.get(name.parts[0].lower(), "train")
            splits[split].append(_CaptionedFile(image, name.as_posix(), texts))
        if not captions:
            raise UserError(
                f"{self.path!r} contains no captions: add a metadata.jsonl (file_name, caption), "
                "or a .txt file of the same name beside each image"
            )
        if missing := len(images) - len(captions):
            log.warning(
                "%d of %d images in %s have no caption and are skipped",
                missing, len(images), self.path,
            )  # fmt: skip
        resolved = resolve_splits(
            splits, self._hold_out, f"folder {self.path!r}", "put images in a folder 'train' there"
        )
        single = all(len(file.captions) == 1 for files in resolved.values() for file in files)
        return DatasetDict({split: _dataset(files, single) for split, files in resolved.items()})

    def _list_files(self, root: Path) -> Listing:
        if not root.is_dir():
            kind = "a file, not a folder" if root.is_file() else "not a folder"
            raise UserError(f"{self.path!r} is {kind}: give the path of a folder of images")
        return list_files(root)

    def _select_images(self, listing: Listing) -> list[Path]:
        """Returns the images, and warns about images of other formats."""
        others = [file for file in listing.files if _is_other_image(file)]
        heif = [file for file in others if file.suffix.lower() in HEIF_SUFFIXES]
        for files, kind, remedy in (
            (heif, "HEIC images", "pip install 'tilewright[heif]'"),
            (sorted({*others} - {*heif}), "images of other formats", "convert them to PNG"),
        ):
            if files:
                log.warning(
                    "%d %s in %s cannot be read and are left out, such as %r: %s",
                    len(files), kind, self.path, str(files[0].relative_to(listing.root)), remedy,
                )  # fmt: skip
        images = listing.select(IMAGE_SUFFIXES)
        if not images:
            raise UserError(
                f"{self.path!r} contains no images that can be read: add JPEG or PNG files"
            )
        return images

    def _hold_out(
        self, files: list[_CaptionedFile]
    ) -> tuple[list[_CaptionedFile], list[_CaptionedFile]]:
        positions = [hash_position(self.seed, file.name) for file in files]
        limit = validation_limit(positions, self.validation_fraction, f"folder {self.path!r}")
        pairs = list(zip(files, positions, strict=True))
        train = [file for file, position in pairs if position >= limit]
        validation = [file for file, position in pairs if position < limit]
        return train, validation


def _is_other_image(file: Path) -> bool:
    """Returns True for an image, by its suffix, of a format that is not read."""
    suffix = file.suffix.lower()
    kind = mimetypes.guess_type(f"image{suffix}", strict=False)[0] or ""
    is_image = kind.startswith("image/") or suffix in {".eps", *HEIF_SUFFIXES}
    return is_image and suffix not in IMAGE_SUFFIXES


def _dataset(files: list[_CaptionedFile], single: bool) -> Dataset:
    """Makes a dataset, with one string per row if `single`, else with a list of strings."""
    caption = Value("string") if single else List(Value("string"))
    return Dataset.from_dict(
        {
            "image": [str(file.path) for file in files],
            "caption": [file.captions[0] if single else file.captions for file in files],
        },
        features=Features({"image": Image(), "caption": caption}),
    )
