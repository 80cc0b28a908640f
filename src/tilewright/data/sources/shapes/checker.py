"""Checker of the shapes dataset: reads an image and decides whether a caption is true of it.

Nothing here is learned. The checker separates blobs of ink from the background. The color of a blob
is the nearest color of the palette. Its shape and size are those of the template that overlaps it
most; templates come from the renderer itself.

The thresholds are calibrated in `tests/data/sources/shapes/test_checker.py`. Do not change them:
results from before and after would not be comparable.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import Any

import numpy as np
from scipy import ndimage

from tilewright.data.sources.shapes import world
from tilewright.data.sources.shapes.grammar import (
    Claim,
    Description,
    caption_kind,
    parse_caption,
)
from tilewright.data.sources.shapes.world import (
    BACKGROUND,
    PALETTE,
    RADIUS,
    SHAPES,
    UNITS,
    Scene,
    Thing,
)

INK = 0.45  # RGB distance from the background above which a pixel belongs to a blob
SPECK = 6.0  # smaller blobs are ignored, in square units
OFF_COLOR = 0.2  # RGB distance from all mixtures of the blob's color and the background
MATCH = 0.75  # minimum overlap (soft IoU) of a blob with its template
LEAD = 0.05  # minimum lead over templates of other shapes, against half circle, half square
SOFT = 0.7  # sigma in units of the blurred templates, because decoders blur a little
_STEPS = 4  # templates lie on a grid of 1 / _STEPS pixels

_KINDS = [(shape, size) for shape in SHAPES for size in RADIUS]
_COLORS = np.array(list(PALETTE.values())) / 255.0
_BACKGROUND = np.array(BACKGROUND) / 255.0
_NEIGHBORS = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class DetectedObject:
    """One blob in an image.

    Attributes:
        color: nearest color of the palette.
        shape, size: of the best template, or None if no template fits.
        x, y: center in units.
        match: soft IoU with the best template.
    """

    color: str
    shape: str | None
    size: str | None
    x: float
    y: float
    match: float

    @property
    def thing(self) -> Thing | None:
        """The blob as a thing, or None if no template fits."""
        if self.shape is None or self.size is None:
            return None
        return Thing(self.shape, self.color, self.size, self.x, self.y)


@dataclass(frozen=True)
class CaptionCheck:
    """Result of checking a caption against an image, attribute by attribute.

    An attribute is None if the caption does not mention it, or if the number of objects is wrong
    and nothing can be compared. Shape and size are both False if a blob fits no template.
    """

    number: bool
    color: bool | None = None
    shape: bool | None = None
    size: bool | None = None
    place: bool | None = None
    relation: bool | None = None

    @property
    def passed(self) -> bool:
        """True if no attribute is wrong."""
        parts = (self.number, self.color, self.shape, self.size, self.place, self.relation)
        return False not in parts


def caption_is_true(image: Any, caption: str) -> bool:
    """Returns True if the caption is true of the image.

    Args:
        image: uint8 [H, H, 3], float [3, H, H] in [0, 1] (array or tensor), or a PIL image.
        caption: a caption of the grammar.

    Raises:
        UserError: the caption is outside the grammar.
        ValueError: the image has another type or shape.
    """
    return check_caption(image, caption).passed


def check_caption(image: Any, caption: str | Claim) -> CaptionCheck:
    """Checks each attribute of a caption. See `caption_is_true` for the arguments."""
    claim = parse_caption(caption) if isinstance(caption, str) else caption
    objects = detect_objects(image)
    if len(objects) != len(claim.things):
        return CaptionCheck(number=False)
    # A description refers to the blob that it fits best. Ties go to the order that passes.
    checks = [
        (_mismatches(claim, order), _compare(claim, order)) for order in permutations(objects)
    ]
    return min(checks, key=lambda item: (item[0], not item[1].passed))[1]


class ShapesChecker:
    """Caption checker of the shapes dataset."""

    def matches(self, image: Any, caption: str) -> bool:
        """Returns True if the image matches the caption. See `caption_is_true`."""
        return caption_is_true(image, caption)

    def category(self, caption: str) -> str:
        """Returns the kind of the caption: "one object", "two objects" or "relation"."""
        return caption_kind(caption)


def read_scene(image: Any) -> Scene | None:
    """Returns the scene in an image, or None if it has no objects or an unreadable one."""
    things = [detected.thing for detected in detect_objects(image)]
    if not things or None in things:
        return None
    return Scene(tuple(sorted(thing for thing in things if thing is not None)))


def detect_objects(image: Any) -> list[DetectedObject]:
    """Returns all blobs in an image except specks. See `caption_is_true` for the image."""
    pixels = _as_pixels(image)
    scale = len(pixels) / UNITS
    ink = np.linalg.norm(pixels - _BACKGROUND, axis=-1) > INK
    blobs, number = ndimage.label(ink, structure=_NEIGHBORS)
    areas = np.bincount(blobs.ravel(), minlength=number + 1)
    labels = [label for label in range(1, number + 1) if areas[label] >= SPECK * scale**2]
    return [_identify(pixels, blobs, label, scale) for label in labels]


def _identify(pixels: np.ndarray, blobs: np.ndarray, label: int, scale: float) -> DetectedObject:
    blob = blobs == label
    # Use the half of the blob with more ink, because its edge is paler.
    strength = np.linalg.norm(pixels[blob] - _BACKGROUND, axis=-1)
    inside = pixels[blob][strength >= np.median(strength)]
    nearest = np.linalg.norm(_COLORS - np.median(inside, axis=0), axis=1).argmin()
    color, pure = list(PALETTE)[nearest], _COLORS[nearest]

    # Fraction of ink per pixel. The soft edge lies one pixel outside of the blob. Pixels that are
    # not a mixture of the color and the background are ink of a wrong color.
    around = ndimage.binary_dilation(blob, structure=_NEIGHBORS) & ((blobs == label) | (blobs == 0))
    toward = pure - _BACKGROUND
    cover = ((pixels - _BACKGROUND) @ toward / (toward @ toward)).clip(0, 1)
    residual = pixels - _BACKGROUND - cover[..., None] * toward
    off = np.linalg.norm(residual, axis=-1) > OFF_COLOR
    ink = np.where(around, np.where(off, 1, cover), 0)
    right_color = np.where(off, 0, ink)

    y, x = (center + 0.5 for center in ndimage.center_of_mass(ink))  # pixel indices to lengths
    matches, offsets = _match(right_color, ink, x, y, scale)
    best = int(matches.argmax())
    others = [m for m, kind in zip(matches, _KINDS, strict=True) if kind[0] != _KINDS[best][0]]
    fits = matches[best] >= MATCH and matches[best] - max(others) >= LEAD
    shape, size = _KINDS[best] if fits else (None, None)
    dx, dy = offsets[best]
    return DetectedObject(
        color, shape, size, float(x - dx) / scale, float(y - dy) / scale, float(matches[best])
    )


def _match(
    right_color: np.ndarray, ink: np.ndarray, x: float, y: float, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the soft IoU of a blob with each of the K kinds, and the offsets of the kinds.

    Args:
        right_color: [H, W], the part of the ink that has the blob's color; only it can overlap.
        ink: [H, W].
        x, y: center of mass of the ink, in pixels.

    Returns:
        [K] and [K, 2].
    """
    column, step_x = divmod(round(x * _STEPS), _STEPS)
    row, step_y = divmod(round(y * _STEPS), _STEPS)
    templates, offsets = _templates(scale, step_x, step_y)
    reach = templates.shape[-1] // 2
    window = np.s_[row : row + 2 * reach + 1, column : column + 2 * reach + 1]
    overlap = np.minimum(np.pad(right_color, reach)[window], templates).sum((2, 3))
    shared = np.minimum(np.pad(ink, reach)[window], templates).sum((2, 3))
    matches = overlap / (ink.sum() + templates.sum((2, 3)) - shared)
    return matches.max(0), offsets


@lru_cache(maxsize=256)
def _templates(scale: float, step_x: int, step_y: int) -> tuple[np.ndarray, np.ndarray]:
    """Renders all K kinds with their centers of mass at the same point.

    Returns:
        float32 [2, K, 2R+1, 2R+1], sharp and blurred. The point is (step_x, step_y) / _STEPS
        pixels from the top left corner of the middle pixel.
        float64 [K, 2], (dx, dy) in pixels from a kind's center to its center of mass.
    """
    reach = int(np.ceil((RADIUS["large"] + 2) * scale)) + 1
    sharp = np.zeros((len(_KINDS), 2 * reach + 1, 2 * reach + 1), dtype=np.float32)
    offsets = np.zeros((len(_KINDS), 2))
    for canvas, offset, (shape, size) in zip(sharp, offsets, _KINDS, strict=True):
        radius = RADIUS[size] * scale
        centered = world.coverage(shape, radius, 0.0, 0.0)
        dy, dx = (at + 0.5 - len(centered) // 2 for at in ndimage.center_of_mass(centered))
        # The center is at the point minus (dx, dy): render the fraction, shift by whole pixels.
        left, x = divmod(step_x / _STEPS - dx, 1)
        top, y = divmod(step_y / _STEPS - dy, 1)
        rendered = world.coverage(shape, radius, float(x), float(y))
        side = len(rendered)
        row, column = (reach - side // 2 + int(shift) for shift in (top, left))
        canvas[row : row + side, column : column + side] = rendered
        offset[:] = dx, dy
    blurred = ndimage.gaussian_filter(sharp, (0, SOFT * scale, SOFT * scale))
    return np.stack([sharp, blurred]), offsets


def _compare(claim: Claim, objects: Sequence[DetectedObject]) -> CaptionCheck:
    pairs: list[tuple[Description, DetectedObject]] = list(zip(claim.things, objects, strict=True))
    centers = [Thing("", detected.color, "", detected.x, detected.y) for detected in objects]
    return CaptionCheck(
        number=True,
        color=all(description.color == detected.color for description, detected in pairs),
        shape=all(description.shape == detected.shape for description, detected in pairs),
        size=all(description.size == detected.size for description, detected in pairs),
        place=None if claim.place is None else claim.place == world.place(centers[0]),
        relation=None if claim.relation is None else claim.relation == world.relation(*centers),
    )


def _mismatches(claim: Claim, objects: Sequence[DetectedObject]) -> int:
    """Counts the colors, shapes and sizes that differ between the descriptions and the objects."""
    return sum(
        getattr(description, attribute) != getattr(detected, attribute)
        for description, detected in zip(claim.things, objects, strict=True)
        for attribute in ("color", "shape", "size")
    )


def _as_pixels(image: Any) -> np.ndarray:
    """Converts an image to float32 [H, H, 3] in [0, 1]."""
    if hasattr(image, "detach"):  # a tensor; numpy has no bfloat16
        image = image.detach().float().cpu() if image.is_floating_point() else image.cpu()
    pixels = np.asarray(image)
    if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3:
        pixels = pixels / np.float32(255)
    elif pixels.dtype.kind == "f" and pixels.ndim == 3 and pixels.shape[0] == 3:
        pixels = pixels.transpose(1, 2, 0).astype(np.float32)
    else:
        raise ValueError(
            f"the image is {pixels.dtype} {list(pixels.shape)}: pass uint8 [H, H, 3] or "
            "float [3, H, H]"
        )
    if pixels.shape[0] != pixels.shape[1] or len(pixels) < UNITS:
        raise ValueError(
            f"the image has {list(pixels.shape[:2])} pixels: pass a square one of {UNITS} or more"
        )
    return pixels
