"""Captions of the images in a folder, from metadata files or from a file beside each image."""

import logging
from collections.abc import Sequence
from pathlib import Path

from tilewright.data.captions import CAPTION_COLUMNS
from tilewright.data.sources.folder_metadata import read_metadata
from tilewright.data.sources.folder_sidecars import read_sidecars
from tilewright.data.sources.listing import Listing
from tilewright.data.sources.text_captions import CaptionsPerFile
from tilewright.text_files import check_encoding

log = logging.getLogger(__name__)


def read_captions(
    listing: Listing,
    images: Sequence[Path],
    caption_column: str | None,
    captions_per_file: CaptionsPerFile,
    encoding: str | None = None,
) -> dict[Path, list[str]]:
    """Returns the captions of each captioned image.

    Metadata takes precedence over the files beside the images. Warnings count the rows, captions
    and files that are not used.

    Raises:
        UserError: a metadata file is malformed.
    """
    check_encoding(encoding)
    columns = CAPTION_COLUMNS if caption_column is None else (caption_column,)
    captions, problems = read_metadata(listing, images, columns, encoding)
    from_sidecars, sidecar_problems = read_sidecars(
        listing, images, captions, columns, captions_per_file, encoding
    )
    captions |= from_sidecars
    problems += sidecar_problems
    if not captions and not problems:
        problems.append(
            f"{str(listing.root)!r} contains no captions: to add some, write a metadata.jsonl "
            "(file_name, caption), or a .txt file of the same name beside each image"
        )
    for problem in problems:
        log.warning(problem)
    return captions
