"""The paper's two augmentations, and the plain crop of evaluation.

Each is a callable from a PIL picture of any size to one of `size` x `size` pixels. Random numbers
come from torch's default generator, which DataLoader seeds in every worker.
"""

from dataclasses import dataclass

import torch
from PIL import Image


@dataclass(frozen=True)
class StageOneCrop:
    """The dVAE's augmentation: any square, shrunk to 9/8 to 12/8 of `size`, any crop, any flip.

    Args:
        size: the side of the result, in pixels.
        flip: mirror every other picture; off for pictures whose captions say left and right.
    """

    size: int
    flip: bool = True

    def __call__(self, image: Image.Image) -> Image.Image:
        short = min(image.size)
        left, top = (_draw(0, slack - short) for slack in image.size)
        side = _draw(_side(short, self.size, 9 / 8), _side(short, self.size, 12 / 8))
        image = _random_crop(_resize_square(image, left, top, short, side), self.size)
        if self.flip and _draw(0, 1):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image


@dataclass(frozen=True)
class StageTwoCrop:
    """The prior's augmentation: a square near the middle, shrunk to 1 to 9/8 of `size`, any crop.

    There is no flip, for pictures may hold text.

    Args:
        size: the side of the result, in pixels.
    """

    size: int

    def __call__(self, image: Image.Image) -> Image.Image:
        short = min(image.size)
        # The square's offset lies in the middle quarter of what it may be.
        left, top = (
            _draw(3 * (length - short) // 8, 5 * (length - short) // 8) for length in image.size
        )
        side = _draw(self.size, _side(short, self.size, 9 / 8))
        return _random_crop(_resize_square(image, left, top, short, side), self.size)


@dataclass(frozen=True)
class CenterCrop:
    """Evaluation's crop: the square in the middle, resized; nothing is random.

    A picture that is of that size already is returned as it is, pixel for pixel.

    Args:
        size: the side of the result, in pixels.
    """

    size: int

    def __call__(self, image: Image.Image) -> Image.Image:
        short = min(image.size)
        left, top = ((length - short) // 2 for length in image.size)
        return _resize_square(image, left, top, short, self.size)


def _draw(low: int, high: int) -> int:
    """A random integer from low to high, both included."""
    return int(torch.randint(low, high + 1, ()))


def _side(short: int, size: int, factor: float) -> int:
    # As in the paper's listing, a picture is never enlarged for the sake of the crop. One that is
    # smaller than the target has to be enlarged, but no further than that.
    return max(size, min(short, round(factor * size)))


def _resize_square(image: Image.Image, left: int, top: int, short: int, side: int) -> Image.Image:
    """Cut out the square of side `short` at (left, top) and resize it to `side`."""
    box = (left, top, left + short, top + short)
    if image.size == (side, side):
        return image
    if short == side:
        return image.crop(box)
    # Box filtering is area averaging, the right thing for shrinking only.
    filter_ = Image.Resampling.BOX if side < short else Image.Resampling.BICUBIC
    return image.resize((side, side), filter_, box=box)


def _random_crop(image: Image.Image, size: int) -> Image.Image:
    left, top = (_draw(0, length - size) for length in image.size)
    return image.crop((left, top, left + size, top + size))
