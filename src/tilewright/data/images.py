"""From an encoded picture, as it lies in a data set, to pixels."""

import contextlib
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

WHITE = (255, 255, 255)


class UnreadableImage(Exception):  # noqa: N818
    """These bytes are no picture, or only a part of one."""


def decode(record: Mapping[str, Any] | None) -> Image.Image:
    """Decode an encoded picture to RGB.

    The picture is turned upright as its EXIF says; transparent parts lie on white; CMYK, palette,
    grey and 16-bit pictures become 8-bit RGB; of an animation it is the first frame.

    Args:
        record: what `datasets.Image(decode=False)` gives: `bytes`, or else `path`.

    Raises:
        UnreadableImage: there is no picture, or it is broken or cut short.
    """
    record = record or {}
    data, path = record.get("bytes"), record.get("path")
    if data is None and not path:
        raise UnreadableImage("no picture: neither bytes nor a path")
    file: Any = path if data is None else BytesIO(data)
    try:
        with Image.open(file) as image:
            image.load()
            return _to_rgb(_upright(image))
    except Exception as error:  # broken bytes make the codecs raise classes of every kind
        raise UnreadableImage(f"{path or 'picture'}: {error}") from error


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an RGB picture to a float tensor, `[3, H, W]` in [0, 1]."""
    pixels = torch.from_numpy(np.array(image))  # a copy: the picture's own buffer is read-only
    return pixels.permute(2, 0, 1).contiguous().float() / 255


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
        grey = (pixels * scale).round().clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (*WHITE, 255))
        return Image.alpha_composite(canvas, image).convert("RGB")
    return image.convert("RGB")
