"""Conversion of images with more than 8 bits per sample to 8 bits.

Few files record how many bits of a sample are in use, and cameras write 12 bits to 16-bit files.
The depth of an image is therefore the smallest depth of real devices that holds its largest sample.
"""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

DEPTHS = (8, 10, 12, 14, 16, 24, 31)  # bits; Pillow reads at most 31
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF, and a value of the second
DEEP_COLORS = ("RGB;16", "RGBA;16", "RGBX;16")  # layouts that Pillow reduces to the upper 8 bits


def is_deep_gray(image: Image.Image) -> bool:
    """Returns True for a gray image with more than 8 bits per sample."""
    return image.mode == "F" or image.mode.startswith("I")


def reduce_gray(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Converts a deep gray image to 8 bits. NaN and negative samples become black.

    Floats are in [0, 1] if none reaches 2. Otherwise they have the range of integers.

    Args:
        tags: tags of a TIFF file, empty for other files. They may set a depth below 16 bits, and
            that 0 is white.
    """
    samples = np.asarray(image).astype(np.float32)
    largest = samples.max(initial=0, where=np.isfinite(samples))
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    if image.mode == "F" and largest < 2:
        white = 1.0
    else:
        white = 2**bits - 1 if bits < 16 else _white_level(largest)
    levels = np.nan_to_num(samples / white, nan=0, posinf=1, neginf=0).clip(0, 1)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        levels = 1 - levels
    return Image.fromarray((levels * 255).round().astype(np.uint8))


def layout(image: Image.Image) -> str:
    """Returns Pillow's name for the layout of the samples in an image that is not loaded yet.

    Returns "" for formats with one layout.
    """
    tiles = getattr(image, "tile", [])
    arguments = (tiles[0].args if tiles else None) or ("",)
    return str(arguments if isinstance(arguments, str) else arguments[0])


def is_dark_color(image: Image.Image, file_layout: str) -> bool:
    """Returns True for 16-bit color that has at most 14 bits in use.

    The upper 8 bits are not enough for such an image.
    """
    return file_layout.startswith(DEEP_COLORS) and bool(np.asarray(image)[..., :3].max() < 64)


def select_lower_bits(image: Image.Image) -> None:
    """Makes an image of 16-bit color load its lower 8 bits, by swapping the byte order."""
    native = "L" if sys.byteorder == "little" else "B"
    name = layout(image)
    order = name[-1].replace("N", native)
    swapped = name[:-1] + {"L": "B", "B": "L"}[order]
    image.tile = [  # type: ignore[attr-defined]
        tile._replace(args=swapped if isinstance(tile.args, str) else (swapped, *tile.args[1:]))
        for tile in image.tile  # type: ignore[attr-defined]
    ]


def reduce_color(upper: Image.Image, lower: Image.Image) -> Image.Image:
    """Converts 16-bit color, given as its upper and lower 8 bits, to 8 bits."""
    samples = np.asarray(upper).astype(np.float32) * 256 + np.asarray(lower)
    parts = [
        part * 255 / _white_level(part.max(initial=0))
        for part in (samples[..., :3], samples[..., 3:])
    ]
    return Image.fromarray(np.concatenate(parts, axis=-1).round().astype(np.uint8))


def _white_level(largest: float) -> float:
    """Returns the largest sample value of the depth that holds `largest`."""
    return next((2.0**bits - 1 for bits in DEPTHS if largest < 2**bits), largest)
