"""Image transforms: the paper's two augmentations, the center crop for evaluation, and recoloring.

A crop is a callable from a PIL image of any size to a PIL image of `size` x `size` pixels. Random
numbers come from torch's default generator.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from tilewright.checks import check_flag, check_number, check_whole

# Captions of images that look wrong in a mirror: sides, turns and writing, in English.
NOT_MIRRORED = re.compile(
    r"\b(left|right|(anti|counter)?-?clockwise|text|titled?|words?|letters?|alphabet|signs?"
    r"|numbers?|digits?|keycap|buttons?|clocks?|flags?|maps?|logos?|labels?|says|saying|reads"
    r"|written|writing)\b|\d|[\"“”«»]",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class StageOneCrop:
    """Augmentation of stage 1: a random square, resized to 9/8 to 12/8 of `size`, then cropped.

    Args:
        size: side of the result in pixels.
        flip: mirror half of the images. Turn it off if captions say left and right.
    """

    size: int
    flip: bool = True

    def __post_init__(self) -> None:
        check_whole("size", self.size)
        check_flag("flip", self.flip)

    def __call__(self, image: Image.Image) -> Image.Image:
        short = min(image.size)
        left, top = (_random_integer(0, slack - short) for slack in image.size)
        side = _random_integer(_side(short, self.size, 9 / 8), _side(short, self.size, 12 / 8))
        image = _random_crop(_resize_square(image, left, top, short, side), self.size)
        return _flip_half(image) if self.flip else image


@dataclass(frozen=True)
class StageTwoCrop:
    """Augmentation of stage 2: a square near the center, resized to 1 to 9/8 of `size`, cropped.

    Args:
        size: side of the result in pixels.
        flip: mirror half of the images, except those whose captions mention a side or writing.
    """

    size: int
    flip: bool = False

    def __post_init__(self) -> None:
        check_whole("size", self.size)
        check_flag("flip", self.flip)

    def for_captions(self, captions: Sequence[str]) -> "StageTwoCrop":
        """Returns this crop, without mirroring if a caption forbids it."""
        is_fixed = any(map(NOT_MIRRORED.search, captions))
        return StageTwoCrop(self.size, flip=False) if is_fixed else self

    def __call__(self, image: Image.Image) -> Image.Image:
        short = min(image.size)
        # The offset of the square lies in the middle quarter of its range.
        left, top = (
            _random_integer(3 * (length - short) // 8, 5 * (length - short) // 8)
            for length in image.size
        )
        side = _random_integer(self.size, _side(short, self.size, 9 / 8))
        image = _random_crop(_resize_square(image, left, top, short, side), self.size)
        return _flip_half(image) if self.flip else image


@dataclass(frozen=True)
class CenterCrop:
    """Center square of an image, resized to `size`.

    An image that has this size already is returned unchanged.

    Args:
        size: side of the result in pixels.
    """

    size: int

    def __post_init__(self) -> None:
        check_whole("size", self.size)

    def __call__(self, image: Image.Image) -> Image.Image:
        short = min(image.size)
        left, top = ((length - short) // 2 for length in image.size)
        return _resize_square(image, left, top, short, self.size)


@dataclass(frozen=True)
class RandomApply:
    """Transforms of a random share of the images. It recolors shapes (docs/dvae.md).

    torchvision has this class, too, but does not check `p`, and is slow to import.

    Args:
        transforms: transforms of an image.
        p: share of the images that are transformed.

    Raises:
        UserError: `p` is not a share.
    """

    transforms: Sequence[Callable[[Image.Image], Image.Image]]
    p: float = 0.5

    def __post_init__(self) -> None:
        check_number("recoloring.p", self.p, 0, 1)

    def __call__(self, image: Image.Image) -> Image.Image:
        if torch.rand(1) > self.p:
            return image
        for transform in self.transforms:
            image = transform(image)
        return image


def _random_integer(low: int, high: int) -> int:
    """Returns a random integer from `low` to `high`, both inclusive."""
    return int(torch.randint(low, high + 1, ()))


def _flip_half(image: Image.Image) -> Image.Image:
    """Mirrors an image with a probability of one half."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if _random_integer(0, 1) else image


def _side(short: int, size: int, factor: float) -> int:
    # As in the paper's listing, the crop never enlarges an image. An image that is smaller than
    # the target is enlarged to the target.
    return max(size, min(short, round(factor * size)))


def _resize_square(image: Image.Image, left: int, top: int, short: int, side: int) -> Image.Image:
    """Crops the square of side `short` at (left, top) and resizes it to `side`."""
    box = (left, top, left + short, top + short)
    if image.size == (side, side):
        return image
    if short == side:
        return image.crop(box)
    # The box filter averages areas, which suits shrinking only.
    filter_ = Image.Resampling.BOX if side < short else Image.Resampling.BICUBIC
    return image.resize((side, side), filter_, box=box)


def _random_crop(image: Image.Image, size: int) -> Image.Image:
    left, top = (_random_integer(0, length - size) for length in image.size)
    return image.crop((left, top, left + size, top + size))
