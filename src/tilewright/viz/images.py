"""Image grids and PNG files."""

import importlib.util
import json
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn import functional as F

from tilewright.data.images import UnreadableImage, decode_image, to_tensor
from tilewright.errors import UserError

MIN_SIDE = 96  # pixels; grids upscale smaller images so that people can see them
CAPTION_WIDTHS = (480, 1200)  # pixels; a grid is widened within these to fit its captions
BORDER = 4  # pixels of gray around each image of a grid


def to_uint8(images: Tensor) -> Tensor:
    """Rounds float images in [0, 1] to uint8 in 0..255."""
    return (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)


def to_pil(image: Tensor) -> Image.Image:
    """Converts an image [3, H, W] in [0, 1] to a PIL image."""
    return Image.fromarray(to_uint8(image).cpu().movedim(0, -1).numpy())


def upscale_small(images: Tensor) -> Tensor:
    """Repeats the pixels of images [B, 3, H, W] so that a side has at least `MIN_SIDE` pixels."""
    factor = math.ceil(MIN_SIDE / images.shape[-1])
    return F.interpolate(images, scale_factor=factor, mode="nearest") if factor > 1 else images


def make_grid(images: Tensor, columns: int) -> Tensor:
    """Arranges images [B, 3, H, W] in a grid [3, h, w] with gray borders. A single one has none.

    torchvision has this function, too, but is slow to import.
    """
    if len(images) == 1:
        return images[0]
    columns = min(columns, len(images))
    missing = -len(images) % columns
    tiles = F.pad(images, (BORDER, 0, BORDER, 0, 0, 0, 0, missing), value=0.5)
    rows = tiles.unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4)
    return F.pad(rows.flatten(3).flatten(1, 2), (0, BORDER, 0, BORDER), value=0.5)


def reconstruction_grid(originals: Tensor, reconstructions: Tensor, columns: int = 8) -> Tensor:
    """Arranges images [B, 3, H, W] in a grid [3, h, w], each row above its reconstructions."""
    columns = min(columns, len(originals))
    if missing := -len(originals) % columns:  # a short last row would shift the pairs
        gray = originals.new_full((missing, *originals.shape[1:]), 0.5)
        originals, reconstructions = (
            torch.cat([images, gray]) for images in (originals, reconstructions.to(gray))
        )
    rows = []
    for first in range(0, len(originals), columns):
        rows += [originals[first : first + columns], reconstructions[first : first + columns]]
    images = upscale_small(torch.cat(rows).float())
    return make_grid(images, columns)


def captioned_grid(
    captions: Sequence[str],
    images: Tensor | Sequence[Sequence[Image.Image]],
    columns: int | None = None,
) -> Image.Image:
    """Arranges the images of each caption below the caption.

    Args:
        captions: C captions.
        images: [C, n, 3, H, W] in [0, 1], or C lists of n PIL images.
        columns: images per line; None puts all images of a caption on one line.
    """
    font = _font(16)
    strips = []
    for row in images:
        if not isinstance(row, Tensor):
            row = torch.stack([to_tensor(image) for image in row])
        tiles = upscale_small(row.cpu().float())
        strips.append(to_pil(make_grid(tiles, columns or len(row))))
    width, height = strips[0].size
    line_height, margin = 24, 4
    captions = [" ".join(caption.split()) for caption in captions]  # on one line
    longest = math.ceil(max(font.getlength(caption) for caption in captions) + 2 * margin)
    narrowest, widest = CAPTION_WIDTHS
    width = max(width, min(max(longest, narrowest), widest))
    grid = Image.new("RGB", (width, (height + line_height) * len(strips)), "white")
    draw = ImageDraw.Draw(grid)
    for i, (caption, strip) in enumerate(zip(captions, strips, strict=True)):
        top = i * (height + line_height)
        draw.text((margin, top + 2), caption, fill="black", font=font)
        grid.paste(strip, (0, top + line_height))
    return grid


def side_by_side(images: Mapping[str, Image.Image]) -> Image.Image:
    """Places images next to each other, each below its title."""
    title_height, gap = 28, 16
    width = sum(image.width for image in images.values()) + gap * (len(images) - 1)
    height = title_height + max(image.height for image in images.values())
    canvas = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(canvas), _font(18)
    left = 0
    for title, image in images.items():
        draw.text((left + 4, 2), title, fill="black", font=font)
        canvas.paste(image, (left, title_height))
        left += image.width + gap
    return canvas


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Loads DejaVu Sans of matplotlib. Pillow's own font lacks accented letters."""
    package = importlib.util.find_spec("matplotlib")  # without its slow import
    assert package is not None
    assert package.origin is not None
    fonts = Path(package.origin).with_name("mpl-data") / "fonts" / "ttf"
    return ImageFont.truetype(fonts / "DejaVuSans.ttf", size)


def open_image(path: str | Path) -> Image.Image:
    """Reads an image file as RGB.

    Raises:
        UserError: the file does not exist, or is not a readable image.
    """
    try:
        return decode_image({"path": str(path)})
    except UnreadableImage as error:
        raise UserError(
            f"cannot read the image {path} ({error.reason}): give another file"
        ) from error


def encode_png(image: Image.Image, metadata: Mapping[str, Any] | None = None) -> bytes:
    """Encodes an image as PNG.

    Args:
        metadata: stored as JSON in the PNG's text field `tilewright`.
    """
    text = PngInfo()
    if metadata is not None:
        text.add_itxt("tilewright", json.dumps(metadata, ensure_ascii=False))
    file = BytesIO()
    image.save(file, "PNG", pnginfo=text)
    return file.getvalue()


def save_png(
    image: Image.Image | Tensor, path: Path, metadata: Mapping[str, Any] | None = None
) -> None:
    """Writes an image, PIL or [3, H, W] in [0, 1], as PNG. Creates its folder.

    Args:
        metadata: see `encode_png`.
    """
    if isinstance(image, Tensor):
        image = to_pil(image)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():  # replaced, because it may lead to any file
        path.unlink()
    path.write_bytes(encode_png(image, metadata))
