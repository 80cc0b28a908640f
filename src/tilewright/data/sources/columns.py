"""Columns of a dataset: selection of the image and the caption column, with checks."""

from typing import Any, TypeVar

from datasets import Dataset, Features, Image, IterableDataset, LargeList, List, Value

from tilewright.errors import UserError
from tilewright.text_files import require_column

AnyDataset = TypeVar("AnyDataset", Dataset, IterableDataset)

TEXT = ("string", "large_string")
BYTES = ("binary", "large_binary")
# Beginnings of PNG, JPEG, GIF and WebP in base64.
BASE64_IMAGES = ("data:image/", "iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")
MIN_BASE64 = 80  # characters, less than any image and more than a path that begins alike


def select_image_and_caption(
    dataset: AnyDataset, image_column: str, caption_column: str | None, description: str
) -> AnyDataset:
    """Reduces a dataset to the columns `image` and `caption`. Streaming images stay encoded.

    Args:
        caption_column: None gives each row the caption None.
        description: name of the dataset in error messages.

    Raises:
        UserError: a column does not exist or has another type.
    """
    # Streaming data may not know its columns before the first row.
    columns = dataset.column_names or list(next(iter(dataset), {}))
    require_column(columns, (image_column,), description, "set data.source.image_column")
    if caption_column is not None:
        require_column(
            columns,
            (caption_column,),
            description,
            "set data.source.caption_column, or null for images without captions",
        )
    if dataset.features is not None:
        if not _holds_images(dataset.features[image_column]):
            raise UserError(
                f"{description} has no images in column {image_column!r}, which is of type "
                f"{_type(dataset, image_column)}: set data.source.image_column"
            )
        if caption_column is not None and not _holds_text(dataset.features[caption_column]):
            raise UserError(
                f"{description} has no text in column {caption_column!r}, which is of type "
                f"{_type(dataset, caption_column)}: set data.source.caption_column (null for "
                "images without captions), or store strings"
            )
        if is_value(dataset.features[image_column], TEXT):
            _refuse_base64(dataset, image_column, description)
        # Cast first: streaming data decodes its images in any later step, even in a renaming.
        dataset = dataset.cast_column(image_column, Image(decode=False))
    names = {image_column: "image"} | ({caption_column: "caption"} if caption_column else {})
    dataset = dataset.select_columns(list(names))
    dataset = dataset.rename_columns({old: new for old, new in names.items() if old != new})
    if caption_column is None:
        dataset = _add_missing_captions(dataset)
    if isinstance(dataset, IterableDataset):
        return dataset
    return dataset.cast_column("image", Image())


def _add_missing_captions(dataset: AnyDataset) -> AnyDataset:
    if isinstance(dataset, Dataset):
        return dataset.add_column("caption", [None] * len(dataset), feature=Value("string"))
    features = dataset.features
    if features is not None:
        features = Features({**features, "caption": Value("string")})
    return dataset.map(_without_caption, features=features)


def _without_caption(row: dict[str, Any]) -> dict[str, None]:
    return {"caption": None}


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
