"""From an encoded picture, as it lies in a data set, to pixels."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from tilewright.data.skipped import Unusable

WHITE = (255, 255, 255)
MAX_PIXELS = 89_478_485  # as many as Pillow opens without a warning

# Those of pictures. Pillow knows more: one of them starts Ghostscript on what a stranger wrote.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")

# What is wrong with a picture that cannot be used. Codes on disk are made of their order.
NO_PICTURE = "no picture"
NO_FILE = "picture file is missing"
NO_FORMAT = "not a picture"
CUT_SHORT = "picture is cut short"
BROKEN = "picture is broken"
TOO_LARGE = "picture has too many pixels"
KINDS = (NO_PICTURE, NO_FILE, NO_FORMAT, CUT_SHORT, BROKEN, TOO_LARGE)


class UnreadableImage(Unusable):
    """These bytes are no picture, or only a part of one; `kind` is one of `KINDS`."""


def decode(record: Mapping[str, Any] | None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an encoded picture to RGB.

    The picture is turned upright as its EXIF says; transparent parts lie on white; CMYK, palette,
    gray and 16-bit pictures become 8-bit RGB; of an animation it is the first frame.

    Args:
        record: what `datasets.Image(decode=False)` gives: `bytes`, or else `path`.
        max_pixels: a picture of more is not decoded: a small file can hold gigabytes of one color.

    Raises:
        UnreadableImage: there is no picture, or it is broken, cut short or too large.
    """
    with _opened(record, max_pixels) as image:
        image.load()
        return _to_rgb(_upright(image))


def size(record: Mapping[str, Any] | None, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Width and height of an encoded picture, from its header; no pixel is decoded.

    Raises:
        UnreadableImage: there is no picture, or it has no header, or one of too many pixels.
    """
    with _opened(record, max_pixels) as image:
        return image.size


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an RGB picture to a float tensor, `[3, H, W]` in [0, 1]."""
    return to_floats(to_bytes(image))


def to_bytes(image: Image.Image) -> Tensor:
    """Convert an RGB picture to bytes, `[H, W, 3]`."""
    return torch.from_numpy(np.array(image))  # a copy: the picture's own buffer is read-only


def to_floats(pixels: Tensor) -> Tensor:
    """Convert bytes, `[..., H, W, 3]`, to floats, `[..., 3, H, W]` in [0, 1]."""
    return pixels.movedim(-1, -3).contiguous().float() / 255


@contextlib.contextmanager
def _opened(record: Mapping[str, Any] | None, max_pixels: int) -> Iterator[Image.Image]:
    """An encoded picture whose header has been read; what is wrong with it in one exception."""
    record = record if isinstance(record, Mapping) else {}
    data, path = record.get("bytes"), record.get("path")
    if not data and (data is not None or not path):
        raise UnreadableImage(NO_PICTURE, "neither bytes nor a path")
    file: Any = path if data is None else BytesIO(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pixels, which are counted here, and of odd tags
            with Image.open(file, formats=FORMATS) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise UnreadableImage(TOO_LARGE, f"{path or 'picture'}: {width}x{height}")
                yield image
    except UnreadableImage:
        raise
    except Exception as error:  # broken bytes make the codecs raise classes of every kind
        raise UnreadableImage(_kind(error), f"{path or 'picture'}: {error}") from error


def _kind(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return TOO_LARGE
    if isinstance(error, UnidentifiedImageError):
        return NO_FORMAT
    if isinstance(error, FileNotFoundError):
        return NO_FILE
    words = str(error).lower()
    if isinstance(error, EOFError) or any(word in words for word in ("truncated", "end of file")):
        return CUT_SHORT
    return BROKEN


def _upright(image: Image.Image) -> Image.Image:
    with contextlib.suppress(Exception):  # a picture with a broken EXIF is a picture all the same
        return ImageOps.exif_transpose(image)
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # PIL clips these to 8 bits where it should scale them. "I" is how it opens some 16-bit
        # files; floats are in [0, 1] where they are not in [0, 255].
        pixels = np.asarray(image).astype(np.float32)
        floats = image.mode == "F"
        scale = (255 if pixels.max() <= 1 else 1) if floats else 255 / 65535
        gray = (pixels * scale).round().clip(0, 255).astype(np.uint8)
        return Image.fromarray(gray).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*WHITE, 255))
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")
