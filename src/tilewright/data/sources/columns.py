"""Columns of a dataset: selection of the image and the caption column, with checks."""

import logging
from typing import Any, TypeVar

from datasets import Dataset, Image, IterableDataset, LargeList, List, Value

from tilewright.data.captions import DefectCounts, find_captions
from tilewright.errors import UserError

log = logging.getLogger(__name__)

AnyDataset = TypeVar("AnyDataset", Dataset, IterableDataset)

TEXT = ("string", "large_string")
BYTES = ("binary", "large_binary")
# Beginnings of PNG, JPEG, GIF and WebP in base64.
BASE64_IMAGES = ("data:image/", "iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")
MIN_BASE64 = 80  # characters, less than any image and more than a path that begins alike


def select_image_and_caption(
    dataset: AnyDataset, image_column: str, caption_column: str, description: str
) -> AnyDataset:
    """Reduces a dataset to the columns `image` (encoded) and `caption`.

    Rows of a table that have no caption are dropped, and one warning counts them.

    Args:
        description: name of the dataset in error messages.

    Raises:
        UserError: a column does not exist or has another type.
    """
    # Streaming data may not know its columns before the first row.
    columns = dataset.column_names or list(next(iter(dataset), {}))
    for argument, column in (("image_column", image_column), ("caption_column", caption_column)):
        if column not in columns:
            raise UserError(
                f"{description} has no column {column!r}, only {', '.join(columns)}: set "
                f"data.source.{argument}"
            )
    if dataset.features is not None:
        if not _holds_images(dataset.features[image_column]):
            raise UserError(
                f"{description} has no images in column {image_column!r}, which is of type "
                f"{_type(dataset, image_column)}: set data.source.image_column"
            )
        if not _holds_text(dataset.features[caption_column]):
            raise UserError(
                f"{description} has no text in column {caption_column!r}, which is of type "
                f"{_type(dataset, caption_column)}: set data.source.caption_column, or store "
                "strings"
            )
        if is_value(dataset.features[image_column], TEXT):
            _refuse_base64(dataset, image_column, description)
        # Cast first: streaming data decodes its images in any later step, even in a renaming.
        dataset = dataset.cast_column(image_column, Image(decode=False))
    dataset = dataset.select_columns([image_column, caption_column])
    names = {image_column: "image", caption_column: "caption"}
    dataset = dataset.rename_columns({old: new for old, new in names.items() if old != new})
    if isinstance(dataset, IterableDataset):  # rows without a caption are counted during training
        return dataset
    return _drop_uncaptioned(dataset, description).cast_column("image", Image())


def _type(dataset: AnyDataset, column: str) -> str:
    return str(dataset.features.arrow_schema.field(column).type)


def _refuse_base64(dataset: AnyDataset, column: str, description: str) -> None:
    """Raises a UserError if the first image of a column of strings is encoded in base64."""
    first = next((row[column] or "" for row in dataset.select_columns([column])), "")
    if len(first) >= MIN_BASE64 and first.startswith(BASE64_IMAGES):
        raise UserError(
            f"{description} has base64 text in column {column!r}, such as {first[:20]!r}…: store "
            "the bytes of the images, or their paths"
        )


def _drop_uncaptioned(dataset: Dataset, description: str) -> Dataset:
    """Drops the rows without a caption. Warnings count these, and unusable captions of other rows.

    Raises:
        UserError: no row has a caption.
    """
    kept: list[int] = []
    skipped, incomplete = DefectCounts(), DefectCounts()
    batches = dataset.select_columns("caption").iter(1000)
    for index, value in enumerate(value for batch in batches for value in batch["caption"]):
        texts, defects = find_captions(value)
        if texts:
            kept.append(index)
            incomplete.add(f"row {index}", defects)
        else:
            skipped.add(f"row {index}", {next(iter(defects)): 1})
    if skipped and not kept:
        raise UserError(
            f"{description} has no caption in any row ({skipped}): set data.source.caption_column"
        )
    if skipped:
        log.warning(
            "%d of %d rows of %s have no caption and are skipped: %s",
            len(dataset) - len(kept), len(dataset), description, skipped,
        )  # fmt: skip
    if incomplete:
        log.warning(
            "some captions of %s are left out, but their rows have others: %s",
            description, incomplete,
        )  # fmt: skip
    return dataset.select(kept) if skipped else dataset


def is_value(feature: Any, dtypes: tuple[str, ...]) -> bool:
    """Returns True if a feature is a plain value of one of the dtypes."""
    return isinstance(feature, Value) and feature.dtype in dtypes


def _holds_images(feature: Any) -> bool:
    if isinstance(feature, dict):  # struct of an Image whose type was lost
        return {"bytes", "path"} <= set(feature)
    return isinstance(feature, Image) or is_value(feature, TEXT + BYTES)


def _holds_text(feature: Any) -> bool:
    is_list = isinstance(feature, (List, LargeList))
    return is_value(feature.feature if is_list else feature, (*TEXT, "string_view"))
