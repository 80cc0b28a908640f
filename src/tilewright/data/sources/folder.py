"""Captioned images in a folder."""

import logging
import mimetypes
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import digits as DIGITS
from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, List, Value

from tilewright.data.images import HEIF_SUFFIXES, IMAGE_SUFFIXES
from tilewright.data.sources.folder_captions import read_captions
from tilewright.data.sources.listing import Listing, list_files
from tilewright.data.sources.splits import NAME_TO_SPLIT, hold_out_validation, resolve_splits
from tilewright.data.sources.text_captions import CaptionsPerFile
from tilewright.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FolderSource:
    """Images in a folder, captioned in one of two ways.

    - A `metadata.jsonl`, `metadata.csv` or `metadata.tsv` in the folder or below it. It has the
      columns `file_name`, relative to the metadata file, and a caption (in JSON also a list of
      captions).
    - A file beside each image: `1.txt`, `1.png.txt`, `1.caption`, or `1.json` with a caption field.

    The folders `train`, `validation` and `test` directly below are the splits, if they exist.
    Digits at the end do not count, as in `val2017`.

    Args:
        caption_column: column of the captions in the metadata. None uses `caption` or `text`.
        captions_per_file: captions in a text file: "lines" for one per line, "one", or "auto",
            which chooses by the form of the lines.
        encoding: encoding of captions and metadata that are not Unicode. None guesses it.
        validation_fraction: share of the images to hold out if there is neither a `validation`
            nor a `test` folder. A hash of the seed and the file's bytes chooses them.
        seed: seed of that choice.
    """

    path: str
    caption_column: str | None = None
    captions_per_file: CaptionsPerFile = "auto"
    encoding: str | None = None
    validation_fraction: float = 0.05
    seed: int = 0

    def load(self) -> DatasetDict:
        """Loads the splits without decoding an image. See `Source.load`."""
        root = Path(self.path).expanduser().absolute()
        listing = self._list_files(root)
        images = self._select_images(listing)
        splits: dict[str, dict[Path, list[str]]] = defaultdict(dict)
        captions = read_captions(
            listing, images, self.caption_column, self.captions_per_file, self.encoding
        )
        for image in images:
            top = image.relative_to(root).parts[0].lower().rstrip(DIGITS)
            splits[NAME_TO_SPLIT.get(top, "train")][image] = captions.get(image, [])
        single = all(len(texts) <= 1 for texts in captions.values())
        description = f"folder {self.path!r}"
        hold_out = partial(
            hold_out_validation,
            fraction=self.validation_fraction,
            seed=self.seed,
            description=description,
        )
        datasets = {split: _dataset(rows, single) for split, rows in splits.items()}
        return DatasetDict(
            resolve_splits(datasets, hold_out, description, "put images in a folder 'train' there")
        )

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
            (heif, "HEIC image(s)", "pip install 'tilewright[heif]'"),
            (sorted({*others} - {*heif}), "image(s) of other formats", "convert them to PNG"),
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


def _is_other_image(file: Path) -> bool:
    """Returns True for an image, by its suffix, of a format that is not read."""
    suffix = file.suffix.lower()
    kind = mimetypes.guess_type(f"image{suffix}", strict=False)[0] or ""
    is_image = kind.startswith("image/") or suffix in {".eps", *HEIF_SUFFIXES}
    return is_image and suffix not in IMAGE_SUFFIXES


def _dataset(captions: dict[Path, list[str]], single: bool) -> Dataset:
    """Makes a dataset, with one string or None per row if `single`, else with a list of strings.

    It is on disk, so that `datasets` also caches what is computed from its images.
    """
    caption = Value("string") if single else List(Value("string"))
    texts = tuple(next(iter(texts), None) if single else texts for texts in captions.values())
    # Tuples, because `datasets` treats each list as a list of shards.
    arguments = {"paths": tuple(map(str, captions)), "captions": texts}
    features = Features({"image": Image(), "caption": caption})
    return Dataset.from_generator(_rows, features=features, gen_kwargs=arguments)


def _rows(
    paths: Sequence[str], captions: Sequence[str | list[str] | None]
) -> Iterator[dict[str, Any]]:
    for path, caption in zip(paths, captions, strict=True):
        yield {"image": path, "caption": caption}
