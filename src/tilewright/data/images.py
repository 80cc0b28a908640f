"""Decoding of the encoded images in a dataset to pixels."""

import contextlib
import importlib
import warnings
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from tilewright.data import bit_depth
from tilewright.data.skipping import SkipRow

WHITE = (255, 255, 255)
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
MAX_PIXELS = 89_478_485  # Pillow's own limit, above which it warns

# Formats that Pillow opens, but that are not read here.
EXCLUDED_FORMATS = {
    "EPS",  # starts Ghostscript on untrusted files
    *("MPEG", "FLI"),  # movies
    *("WMF", "BUFR", "GRIB", "HDF5"),  # no decoder on every machine
    *("IM", "IMT", "IPTC", "PCD", "SPIDER"),  # have no signature, so other files could match
}


def _register_formats() -> tuple[str, ...]:
    """Registers Pillow's formats, and HEIF if pillow-heif is installed. Returns those to read."""
    Image.preinit()  # the common formats come first
    Image.init()
    with contextlib.suppress(ImportError):
        importlib.import_module("pillow_heif").register_heif_opener()
    formats = [name for name in Image.ID if name not in EXCLUDED_FORMATS]
    return tuple(sorted(formats, key=lambda name: name == "TGA"))  # last: it has no signature


FORMATS = _register_formats()
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
HEIF_SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
# Pillow opens MPO, the stereo images of some cameras, as JPEG.
IMAGE_SUFFIXES = frozenset(
    suffix
    for suffix, name in Image.registered_extensions().items()
    if name in FORMATS or name == "MPO"
)

# Reasons for skipping an image. The token cache stores their indices: only append to `REASONS`.
NO_IMAGE = "no image"
NO_FILE = "image file is missing"
NOT_AN_IMAGE = "not an image"
TRUNCATED = "image is truncated"
CORRUPT = "image is corrupt"
TOO_LARGE = "image has too many pixels"
HEIF = "HEIC image without pillow-heif"
NOT_OPENED = "image file cannot be opened"
REASONS = (NO_IMAGE, NO_FILE, NOT_AN_IMAGE, TRUNCATED, CORRUPT, TOO_LARGE, HEIF, NOT_OPENED)


class UnreadableImage(SkipRow):
    """Raised for bytes that are not a complete image. Its reason is one of `REASONS`."""


def decode_image(record: Mapping[str, Any] | None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes an encoded image to RGB, as `to_rgb` does. An animation yields its first frame.

    Args:
        record: output of `datasets.Image(decode=False)`: `bytes`, or else `path`.
        max_pixels: larger images are not decoded, because a small file can hold gigabytes of
            pixels.

    Raises:
        UnreadableImage: the image is missing, corrupt, truncated or too large.
    """
    with _open(record, max_pixels) as image:
        layout = bit_depth.layout(image)
        image.load()
        if bit_depth.is_dark_color(image, layout):
            with _open(record, max_pixels) as lower:
                bit_depth.select_lower_bits(lower)
                lower.load()
                return to_rgb(bit_depth.reduce_color(_rotate(image), _rotate(lower)))
        return to_rgb(image)


def read_size(record: Mapping[str, Any] | None, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Returns the width and the height of an encoded image after its rotation, from its header.

    Raises:
        UnreadableImage: the image is missing, has no valid header, or is too large.
    """
    with _open(record, max_pixels) as image:
        width, height = image.size
        # Without these entries, Pillow would decode a PNG to search for them.
        is_tagged = not {"exif", "xmp"}.isdisjoint(image.info)
        is_sideways = is_tagged and image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
        return (height, width) if is_sideways else (width, height)


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to RGB.

    The image is rotated as its EXIF data says. Transparent parts become white. CMYK, palette, gray
    and deep images (see `bit_depth`) become 8-bit RGB.
    """
    tags = getattr(image, "tag_v2", {})
    image = _rotate(image)
    if bit_depth.is_deep_gray(image):
        image = bit_depth.reduce_gray(image, tags)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*WHITE, 255))
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")


def to_tensor(image: Image.Image) -> Tensor:
    """Converts an RGB image to floats in [0, 1], `[3, H, W]`."""
    return to_floats(to_bytes(image))


def to_bytes(image: Image.Image) -> Tensor:
    """Converts an RGB image to bytes, `[H, W, 3]`."""
    return torch.from_numpy(np.array(image))  # copies, because the image's buffer is read-only


def to_floats(pixels: Tensor) -> Tensor:
    """Converts bytes, `[..., H, W, 3]`, to floats in [0, 1], `[..., 3, H, W]`."""
    return pixels.movedim(-1, -3).contiguous().float() / 255


@contextlib.contextmanager
def _open(record: Mapping[str, Any] | None, max_pixels: int) -> Iterator[Image.Image]:
    """Opens an encoded image and reads its header.

    Any error becomes an UnreadableImage, except that of a machine without free memory.
    """
    record = record if isinstance(record, Mapping) else {}
    data, path = record.get("bytes"), record.get("path")
    if not data and (data is not None or not path):
        raise UnreadableImage(NO_IMAGE, "neither bytes nor a path")
    try:
        file: Any = BytesIO(data) if data else _open_path(str(path))
        Image.MAX_IMAGE_PIXELS = max(max_pixels, MAX_PIXELS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pixels, which are checked below, and about tags
            with Image.open(file, formats=FORMATS) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise UnreadableImage(TOO_LARGE, f"{path or 'image'}: {width}x{height}")
                yield image
    except (UnreadableImage, MemoryError):
        raise
    except Exception as error:  # codecs raise many classes for corrupt bytes
        reason = _reason(error)
        if reason == NOT_AN_IMAGE and _is_heif(file):
            reason = HEIF
        raise UnreadableImage(reason, f"{path or 'image'}: {error}") from error


def is_remote(path: str) -> bool:
    """Returns True for an address on another machine. `zip://1.png::/a.zip` is on this one."""
    return "://" in path.rpartition("::")[2]


def _open_path(path: str) -> str | BytesIO:
    """Returns a path, or the content of an address such as `zip://1.png::/a.zip` or `hf://…`."""
    if "://" not in path:
        return path
    from datasets.utils.file_utils import xopen  # slow to import

    try:
        with xopen(path, "rb") as content:
            return BytesIO(content.read())
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # classes of each protocol
        raise UnreadableImage(NOT_OPENED, f"{path}: {error}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return TOO_LARGE
    if isinstance(error, UnidentifiedImageError):
        return NOT_AN_IMAGE
    if isinstance(error, FileNotFoundError):
        return NO_FILE
    if isinstance(error, OSError) and error.errno is not None:  # not set in errors of codecs
        return NOT_OPENED
    words = str(error).lower()
    if isinstance(error, EOFError) or any(word in words for word in ("truncated", "end of file")):
        return TRUNCATED
    return CORRUPT


def _is_heif(file: str | BytesIO) -> bool:
    """Returns True if a file has the signature of HEIC or HEIF images."""
    with file if isinstance(file, BytesIO) else Path(file).open("rb") as content:
        content.seek(0)
        header = content.read(12)
    return header[4:8] == b"ftyp" and header[8:12] in HEIF_BRANDS


def _rotate(image: Image.Image) -> Image.Image:
    with contextlib.suppress(Exception):  # an image with corrupt EXIF data is still usable
        return ImageOps.exif_transpose(image)
    return image
