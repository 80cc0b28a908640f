"""Grids of pictures: for TensorBoard, for files, for people."""

import json
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import to_pil_image, to_tensor
from torchvision.utils import make_grid

from tilewright.data.images import UnreadableImage, decode
from tilewright.errors import UserError

SMALLEST = 96  # pixels of a picture's side below which it is enlarged to be looked at
WIDTHS = (480, 1200)  # of a grid of few pictures: the least, and the most for a caption's sake


def to_levels(images: Tensor) -> Tensor:
    """Float images in [0, 1] to the 256 levels of a file, uint8 in 0..255: the nearest."""
    return (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)


def to_picture(image: Tensor) -> Image.Image:
    """An image [3, H, W] in [0, 1] as a PIL picture."""
    return to_pil_image(to_levels(image).cpu())


def enlarged(images: Tensor) -> Tensor:
    """Small images [B, 3, H, W] by a whole factor, pixel by pixel, so that a person sees them."""
    factor = math.ceil(SMALLEST / images.shape[-1])
    return F.interpolate(images, scale_factor=factor, mode="nearest") if factor > 1 else images


def comparison(originals: Tensor, reconstructions: Tensor, columns: int = 8) -> Tensor:
    """Originals [B, 3, H, W] in rows, each row over that of its reconstructions: [3, h, w]."""
    columns = min(columns, len(originals))
    if blank := -len(originals) % columns:  # the last row is filled up, or the pairs would shift
        gray = originals.new_full((blank, *originals.shape[1:]), 0.5)
        originals, reconstructions = (
            torch.cat([images, gray]) for images in (originals, reconstructions.to(gray))
        )
    rows = []
    for first in range(0, len(originals), columns):
        rows += [originals[first : first + columns], reconstructions[first : first + columns]]
    images = enlarged(torch.cat(rows).float())
    return make_grid(images, nrow=columns, padding=4, pad_value=0.5)


def captioned_grid(
    captions: Sequence[str],
    images: Tensor | Sequence[Sequence[Image.Image]],
    columns: int | None = None,
) -> Image.Image:
    """Rows of pictures for each caption, which stands above them.

    Args:
        captions: C of them.
        images: [C, n, 3, H, W] in [0, 1], or C lists of n PIL pictures.
        columns: pictures in a row; None puts all of a caption in one.
    """
    font = _font(16)
    strips = []
    for row in images:
        if not isinstance(row, Tensor):
            row = torch.stack([to_tensor(picture) for picture in row])
        tiles = enlarged(row.cpu().float())
        strips.append(
            to_picture(make_grid(tiles, nrow=columns or len(row), padding=4, pad_value=0.5))
        )
    width, height = strips[0].size
    line, margin = 24, 4
    captions = [" ".join(caption.split()) for caption in captions]  # on one line
    longest = max(font.getlength(caption) for caption in captions) + 2 * margin
    width = max(width, min(max(math.ceil(longest), WIDTHS[0]), WIDTHS[1]))
    grid = Image.new("RGB", (width, (height + line) * len(strips)), "white")
    draw = ImageDraw.Draw(grid)
    for number, (caption, strip) in enumerate(zip(captions, strips, strict=True)):
        top = number * (height + line)
        draw.text((margin, top + 2), caption, fill="black", font=font)
        grid.paste(strip, (0, top + line))
    return grid


def side_by_side(pictures: Mapping[str, Image.Image]) -> Image.Image:
    """Pictures of one height beside each other, each under its title."""
    line, gap = 28, 16
    width = sum(picture.width for picture in pictures.values()) + gap * (len(pictures) - 1)
    height = line + max(picture.height for picture in pictures.values())
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), _font(18)
    left = 0
    for title, picture in pictures.items():
        draw.text((left + 4, 2), title, fill="black", font=font)
        sheet.paste(picture, (left, line))
        left += picture.width + gap
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which has the letters of most of Europe; Pillow's own lacks even umlauts."""
    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def open_picture(path: str | Path) -> Image.Image:
    """A picture from a file, as RGB.

    Raises:
        UserError: there is no such file, or it is no picture.
    """
    try:
        return decode({"path": str(path)})
    except UnreadableImage as error:
        raise UserError(f"no picture can be read from {error}") from error


def to_png(image: Image.Image, settings: Mapping[str, Any] | None = None) -> bytes:
    """A picture as a PNG file, with settings as JSON in its text `tilewright`."""
    text = PngInfo()
    if settings is not None:
        text.add_itxt("tilewright", json.dumps(settings, ensure_ascii=False))
    file = BytesIO()
    image.save(file, "PNG", pnginfo=text)
    return file.getvalue()


def save(image: Image.Image, path: Path, settings: Mapping[str, Any] | None = None) -> None:
    """Writes a picture as a PNG, making its folder; what it was drawn with stands in its text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(to_png(image, settings))


def save_tensor(image: Tensor, path: Path, settings: Mapping[str, Any] | None = None) -> None:
    """Writes a picture [3, H, W] in [0, 1] likewise."""
    save(to_picture(image), path, settings)


def show(trainer: pl.Trainer, tag: str, image: Tensor) -> None:
    """Puts a picture [3, H, W] on the TensorBoard page, where there is one."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, image.clamp(0, 1), trainer.global_step)
