"""Captions of the images in a folder, from metadata files or from a file beside each image."""

import logging
from collections.abc import Sequence
from pathlib import Path

from tilewright.data.captions import CAPTION_COLUMNS
from tilewright.data.sources.folder_metadata import read_metadata
from tilewright.data.sources.folder_sidecars import read_sidecars
from tilewright.data.sources.listing import Listing
from tilewright.data.sources.text_captions import CaptionsPerFile
from tilewright.errors import UserError
from tilewright.text_files import check_encoding

log = logging.getLogger(__name__)


def read_captions(
    listing: Listing,
    images: Sequence[Path],
    caption_column: str | None,
    captions_per_file: CaptionsPerFile,
    encoding: str | None = None,
) -> dict[Path, list[str]]:
    """Returns the captions of each captioned image, in the order of the images.

    Metadata takes precedence over the files beside the images. Warnings count the rows, captions
    and files that are not used.

    Raises:
        UserError: no image has a caption, or a metadata file is malformed.
    """
    check_encoding(encoding)
    columns = CAPTION_COLUMNS if caption_column is None else (caption_column,)
    captions, problems = read_metadata(listing, images, columns, encoding)
    from_sidecars, sidecar_problems = read_sidecars(
        listing, images, captions, columns, captions_per_file, encoding
    )
    captions |= from_sidecars
    problems += sidecar_problems
    if not captions:
        advice = (
            "add a metadata.jsonl (file_name, caption), or a .txt file of the same name beside "
            "each image"
        )
        raise UserError(
            f"{str(listing.root)!r} contains no captions: {'; '.join(problems) or advice}"
        )
    for problem in problems:
        log.warning(problem)
    return {image: captions[image] for image in images if image in captions}
