"""Conversion of images with more than 8 bits per sample to 8 bits.

Few files say how many bits of a sample are in use, and cameras write 12 bits to 16-bit files. The
largest sample of an image therefore decides: it is rounded up to a depth that devices have.
"""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

DEPTHS = (8, 10, 12, 14, 16, 24, 31)  # bits; 31 is the most that Pillow reads
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF, and a value of the second
DEEP_COLORS = ("RGB;16", "RGBA;16", "RGBX;16")  # layouts that Pillow reduces to the upper 8 bits


def is_deep_gray(image: Image.Image) -> bool:
    """Returns True for a gray image with more than 8 bits per sample."""
    return image.mode == "F" or image.mode.startswith("I")


def reduce_gray(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """Converts a deep gray image to 8 bits. NaN and negative samples become black.

    Floats are in [0, 1] if none reaches 2, and otherwise in the range of an integer.

    Args:
        tags: tags of a TIFF file. They can say that a sample has fewer than 16 bits, and that 0 is
            white. Empty for other files.
    """
    samples = np.asarray(image).astype(np.float32)
    largest = samples.max(initial=0, where=np.isfinite(samples))
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    if image.mode == "F" and largest < 2:
        white = 1.0
    else:
        white = 2**bits - 1 if bits < 16 else _white(largest)
    shares = np.nan_to_num(samples / white, nan=0, posinf=1, neginf=0).clip(0, 1)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        shares = 1 - shares
    return Image.fromarray((shares * 255).round().astype(np.uint8))


def layout(image: Image.Image) -> str:
    """Returns Pillow's name for the layout of the samples in an image that is not loaded yet."""
    tiles = getattr(image, "tile", [])
    arguments = tiles[0].args if tiles else ""
    return str(arguments if isinstance(arguments, str) else arguments[0])


def is_dark_color(image: Image.Image, file_layout: str) -> bool:
    """Returns True for 16-bit color that has at most 14 bits in use.

    The upper 8 bits are not enough for such an image.
    """
    return file_layout.startswith(DEEP_COLORS) and bool(np.asarray(image)[..., :3].max() < 64)


def select_lower_bits(image: Image.Image) -> None:
    """Makes an image of 16-bit color load its lower 8 bits, by exchanging the bytes."""
    native = "L" if sys.byteorder == "little" else "B"
    name = layout(image)
    order = name[-1].replace("N", native)
    exchanged = name[:-1] + {"L": "B", "B": "L"}[order]
    image.tile = [  # type: ignore[attr-defined]
        tile._replace(args=exchanged if isinstance(tile.args, str) else (exchanged, *tile.args[1:]))
        for tile in image.tile  # type: ignore[attr-defined]
    ]


def reduce_color(upper: Image.Image, lower: Image.Image) -> Image.Image:
    """Converts 16-bit color, given as its upper and lower 8 bits, to 8 bits."""
    samples = np.asarray(upper).astype(np.float32) * 256 + np.asarray(lower)
    parts = [
        part * 255 / _white(part.max(initial=0)) for part in (samples[..., :3], samples[..., 3:])
    ]
    return Image.fromarray(np.concatenate(parts, axis=-1).round().astype(np.uint8))


def _white(largest: float) -> float:
    """Returns the sample value of white: the largest one of the depth that holds `largest`."""
    return next((2.0**bits - 1 for bits in DEPTHS if largest < 2**bits), largest)
