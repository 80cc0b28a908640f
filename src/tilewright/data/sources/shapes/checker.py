"""Reads pictures of the shapes world and says whether a caption is true of them.

Nothing here is learned: blobs of ink are cut out of the background, their color is the nearest of
the palette, and their shape and size are those of the template that covers them best. A template is
what the renderer itself paints. `tests/data/shapes/test_checker.py` holds the rates that the
thresholds were set for; leave them alone, or numbers from before and after do not compare.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import Any

import numpy as np
from scipy import ndimage

from tilewright.data.sources.shapes import world
from tilewright.data.sources.shapes.grammar import Claim, Description, kind, parse
from tilewright.data.sources.shapes.world import (
    BACKGROUND,
    PALETTE,
    RADIUS,
    SHAPES,
    UNITS,
    Scene,
    Thing,
)

INK = 0.45  # distance from the background, in RGB, at which a pixel belongs to a blob
SPECK = 6.0  # square units; smaller blobs are dirt
OFF_COLOR = 0.2  # distance in RGB from all mixtures of the color and the background
MATCH = 0.75  # least overlap (soft IoU) of a blob with its template
LEAD = 0.05  # least lead of the best shape over the others: half circle, half square is neither
SOFT = 0.7  # sigma in units of the second set of templates: a good decoder still blurs a little
_STEPS = 4  # templates lie on a grid of 1 / _STEPS pixels

_KINDS = [(shape, size) for shape in SHAPES for size in RADIUS]
_COLORS = np.array(list(PALETTE.values())) / 255.0
_PAPER = np.array(BACKGROUND) / 255.0
_AROUND = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Sighting:
    """One blob as the checker sees it; shape and size are None where no template fits.

    `match` is the soft IoU with the best template, x and y the center in units.
    """

    color: str
    shape: str | None
    size: str | None
    x: float
    y: float
    match: float

    @property
    def thing(self) -> Thing | None:
        """The object, if it could be read."""
        if self.shape is None or self.size is None:
            return None
        return Thing(self.shape, self.color, self.size, self.x, self.y)


@dataclass(frozen=True)
class Verdict:
    """Whether a caption is true of a picture, attribute by attribute.

    Shape and size are both False where a blob fits no template well.
    An attribute is None where the caption does not speak of it, or where the number of objects is
    wrong so that there is nothing to compare.
    """

    number: bool
    color: bool | None = None
    shape: bool | None = None
    size: bool | None = None
    place: bool | None = None
    relation: bool | None = None

    @property
    def passed(self) -> bool:
        parts = (self.number, self.color, self.shape, self.size, self.place, self.relation)
        return False not in parts


def check(image: Any, caption: str) -> bool:
    """Whether the caption is true of the picture.

    Args:
        image: uint8 [H, H, 3], float [3, H, H] in [0, 1] (array or tensor), or a PIL picture.
        caption: a caption of the grammar.

    Raises:
        UserError: if the caption is outside the grammar.
        ValueError: if the image is none of these.
    """
    return judge(image, caption).passed


def judge(image: Any, caption: str | Claim) -> Verdict:
    """As `check`, with the verdict on each attribute."""
    claim = parse(caption) if isinstance(caption, str) else caption
    seen = look(image)
    if len(seen) != len(claim.things):
        return Verdict(number=False)
    # Which blob a description means is told by its looks; among equals, take the kindest reading.
    readings = [(_unlike(claim, order), _compare(claim, order)) for order in permutations(seen)]
    return min(readings, key=lambda reading: (reading[0], not reading[1].passed))[1]


class ShapesChecker:
    """`CaptionChecker` of the shapes world."""

    def matches(self, image: Any, caption: str) -> bool:
        """Returns True if the image matches the caption; see `check`."""
        return check(image, caption)

    def category(self, caption: str) -> str:
        """Returns "one object", "two objects" or "relation"."""
        return kind(caption)


def read(image: Any) -> Scene | None:
    """The scene in a picture, or None where there is no object or one that cannot be read."""
    things = [sighting.thing for sighting in look(image)]
    if not things or None in things:
        return None
    return Scene(tuple(sorted(thing for thing in things if thing is not None)))


def look(image: Any) -> list[Sighting]:
    """All blobs in a picture (see `check` for what a picture can be), specks left out."""
    pixels = _as_pixels(image)
    scale = len(pixels) / UNITS
    ink = np.linalg.norm(pixels - _PAPER, axis=-1) > INK
    blobs, number = ndimage.label(ink, structure=_AROUND)
    areas = np.bincount(blobs.ravel(), minlength=number + 1)
    kept = [label for label in range(1, number + 1) if areas[label] >= SPECK * scale**2]
    return [_identify(pixels, blobs, label, scale) for label in kept]


def _identify(pixels: np.ndarray, blobs: np.ndarray, label: int, scale: float) -> Sighting:
    blob = blobs == label
    # The color, from the inkier half of the blob: its edge is paler.
    strength = np.linalg.norm(pixels[blob] - _PAPER, axis=-1)
    inside = pixels[blob][strength >= np.median(strength)]
    nearest = np.linalg.norm(_COLORS - np.median(inside, axis=0), axis=1).argmin()
    color, pure = list(PALETTE)[nearest], _COLORS[nearest]

    # How much of each pixel is ink. The soft edge of a blob lies around it, so one pixel more is
    # taken in. Pixels that are no mixture of the color and the paper are ink of a wrong color.
    around = ndimage.binary_dilation(blob, structure=_AROUND) & ((blobs == label) | (blobs == 0))
    toward = pure - _PAPER
    cover = ((pixels - _PAPER) @ toward / (toward @ toward)).clip(0, 1)
    off = np.linalg.norm(pixels - _PAPER - cover[..., None] * toward, axis=-1) > OFF_COLOR
    ink = np.where(around, np.where(off, 1, cover), 0)
    right = np.where(off, 0, ink)

    y, x = (at + 0.5 for at in ndimage.center_of_mass(ink))  # pixel indices to lengths
    matches, offsets = _match(right, ink, x, y, scale)
    best = int(matches.argmax())
    others = [m for m, kind in zip(matches, _KINDS, strict=True) if kind[0] != _KINDS[best][0]]
    clear = matches[best] >= MATCH and matches[best] - max(others) >= LEAD
    shape, size = _KINDS[best] if clear else (None, None)
    dx, dy = offsets[best]
    return Sighting(
        color, shape, size, float(x - dx) / scale, float(y - dy) / scale, float(matches[best])
    )


def _match(
    right: np.ndarray, ink: np.ndarray, x: float, y: float, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Soft IoU of ink [H, W] around (x, y) with every kind [K], and the kinds' offsets [K, 2].

    `right` is the part of the ink that has the right color: only it can overlap.
    """
    column, step_x = divmod(round(x * _STEPS), _STEPS)
    row, step_y = divmod(round(y * _STEPS), _STEPS)
    templates, offsets = _templates(scale, step_x, step_y)
    reach = templates.shape[-1] // 2
    window = np.s_[row : row + 2 * reach + 1, column : column + 2 * reach + 1]
    overlap = np.minimum(np.pad(right, reach)[window], templates).sum((2, 3))
    shared = np.minimum(np.pad(ink, reach)[window], templates).sum((2, 3))
    matches = overlap / (ink.sum() + templates.sum((2, 3)) - shared)
    return matches.max(0), offsets


@lru_cache(maxsize=256)
def _templates(scale: float, step_x: int, step_y: int) -> tuple[np.ndarray, np.ndarray]:
    """All kinds, painted with their center of mass at the same point.

    Returns:
        float32 [2, K, 2R+1, 2R+1], sharp and soft: the point is (step_x, step_y) / _STEPS pixels
        from the top left corner of the middle pixel. And [K, 2]: (dx, dy) in pixels from a kind's
        center to its center of mass.
    """
    reach = int(np.ceil((RADIUS["large"] + 2) * scale)) + 1
    sharp = np.zeros((len(_KINDS), 2 * reach + 1, 2 * reach + 1), dtype=np.float32)
    offsets = np.zeros((len(_KINDS), 2))
    for canvas, offset, (shape, size) in zip(sharp, offsets, _KINDS, strict=True):
        radius = RADIUS[size] * scale
        still = world.coverage(shape, radius, 0.0, 0.0)
        dy, dx = (at + 0.5 - len(still) // 2 for at in ndimage.center_of_mass(still))
        # The center is at the point less (dx, dy): paint the fraction, shift by the whole pixels.
        left, x = divmod(step_x / _STEPS - dx, 1)
        top, y = divmod(step_y / _STEPS - dy, 1)
        stencil = world.coverage(shape, radius, float(x), float(y))
        side = len(stencil)
        row, column = (reach - side // 2 + int(shift) for shift in (top, left))
        canvas[row : row + side, column : column + side] = stencil
        offset[:] = dx, dy
    soft = ndimage.gaussian_filter(sharp, (0, SOFT * scale, SOFT * scale))
    return np.stack([sharp, soft]), offsets


def _compare(claim: Claim, seen: Sequence[Sighting]) -> Verdict:
    pairs: list[tuple[Description, Sighting]] = list(zip(claim.things, seen, strict=True))
    at = [Thing("", sighting.color, "", sighting.x, sighting.y) for sighting in seen]
    return Verdict(
        number=True,
        color=all(said.color == sighting.color for said, sighting in pairs),
        shape=all(said.shape == sighting.shape for said, sighting in pairs),
        size=all(said.size == sighting.size for said, sighting in pairs),
        place=None if claim.place is None else claim.place == world.place(at[0]),
        relation=None if claim.relation is None else claim.relation == world.relation(*at),
    )


def _unlike(claim: Claim, seen: Sequence[Sighting]) -> int:
    """How many attributes of looks differ between the things said and those seen."""
    pairs = zip(claim.things, seen, strict=True)
    return sum(
        getattr(said, attribute) != getattr(sighting, attribute)
        for said, sighting in pairs
        for attribute in ("color", "shape", "size")
    )


def _as_pixels(image: Any) -> np.ndarray:
    """float32 [H, H, 3] in [0, 1]."""
    if hasattr(image, "detach"):  # a tensor; numpy knows no bfloat16
        image = image.detach().float().cpu() if image.is_floating_point() else image.cpu()
    pixels = np.asarray(image)
    if pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3:
        pixels = pixels / np.float32(255)
    elif pixels.dtype.kind == "f" and pixels.ndim == 3 and pixels.shape[0] == 3:
        pixels = pixels.transpose(1, 2, 0).astype(np.float32)
    else:
        raise ValueError(
            "an image is uint8 [H, H, 3] or float [3, H, H], "
            f"not {pixels.dtype} {list(pixels.shape)}"
        )
    if pixels.shape[0] != pixels.shape[1] or len(pixels) < UNITS:
        raise ValueError(f"an image is square, {UNITS} or more wide, not {list(pixels.shape[:2])}")
    return pixels
