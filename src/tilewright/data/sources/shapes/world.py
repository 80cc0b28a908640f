"""World of the shapes dataset: the possible scenes, their random choice, and their rendering.

All lengths are in units. An image is 32 units wide and high, independent of its size in pixels.
x points right and y points down. At `image_size=32` a unit is a pixel.
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin

import numpy as np

from tilewright.errors import UserError

# Part of the name of the folder of rendered data. Raise it with any change to the images, the
# splits or the captions, so that old renders are not reused.
WORLD_VERSION = 1

UNITS = 32
BACKGROUND = (255, 255, 255)

# Any two colors, and any color and the background, are at least 0.46 apart as RGB in [0, 1].
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (205, 10, 45),
    "orange": (255, 125, 0),
    "yellow": (250, 235, 40),
    "green": (30, 160, 50),
    "cyan": (40, 205, 235),
    "blue": (30, 60, 220),
    "purple": (165, 45, 190),
    "black": (20, 20, 20),
}
RADIUS = {"small": 4.5, "large": 7.0}  # half the side of the box that holds the shape

# (color, shape) pairs that are not in train or validation. Each color occurs once and each shape
# once or twice, so that a model learns both halves of a pair from other pairs.
HELD_OUT = frozenset(
    {
        ("red", "square"),
        ("orange", "ring"),
        ("yellow", "star"),
        ("green", "circle"),
        ("cyan", "diamond"),
        ("blue", "triangle"),
        ("purple", "square"),
        ("black", "star"),
    }
)

SPLITS = ("train", "validation", "zeroshot")

# Centers lie on a lattice of 2 units. Edges then cross a tile of 4 pixels in few ways, which a
# small codebook learns in minutes. Millions of different images remain.
LATTICE = 2
MARGIN = 1.0  # minimum distance between a shape and the border
GAP = 2.0  # minimum distance between two shapes
PLACE_EDGES = (12, 20)  # borders between left, middle and right (top, middle and bottom)


@dataclass(frozen=True, order=True)
class Thing:
    """One object. x and y are its center in units."""

    shape: str
    color: str
    size: str
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """One or two things. Their order has no meaning; `sample_scene` sorts them."""

    things: tuple[Thing, ...]


# -- sampling ---------------------------------------------------------------------------------


def sample_scene(seed: int, split: str, index: int) -> Scene:
    """Returns the scene of row `index` of a split. It depends on the three arguments only.

    Train and validation share no scene, because a hash of the scene assigns it to one of the two.
    Each scene of zeroshot has at least one held-out pair. Half of the scenes have two things.

    Raises:
        UserError: the split is unknown.
    """
    if split not in SPLITS:
        raise UserError(f'shapes has no split "{split}": use {", ".join(SPLITS)}')
    rng = random.Random(f"{seed}/{split}/{index}")
    while True:
        scene = _random_scene(rng, zeroshot=split == "zeroshot")
        if split == "zeroshot" or _belongs_to_validation(scene) == (split == "validation"):
            return scene


def relation(first: Thing, second: Thing) -> str:
    """Returns the position of `first` relative to `second`: left, right, above or below."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def place(thing: Thing) -> tuple[int, int]:
    """Returns (column, row) of the thing's center in thirds of the image, 0 to 2 each."""
    column, row = (sum(center >= edge for edge in PLACE_EDGES) for center in (thing.x, thing.y))
    return column, row


def _random_scene(rng: random.Random, zeroshot: bool) -> Scene:
    number = rng.choice((1, 2))
    pairs = [rng.choice(_PAIRS if zeroshot else _KNOWN_PAIRS) for _ in range(number)]
    if zeroshot:
        pairs[0] = rng.choice(sorted(HELD_OUT))
    kinds = [(shape, color, rng.choice(list(RADIUS))) for color, shape in pairs]
    if len(set(kinds)) < number:  # "left of" is ambiguous for twins
        return _random_scene(rng, zeroshot)
    while True:
        things = sorted(Thing(*kind, *_random_center(rng, kind[2], number)) for kind in kinds)
        if number == 1 or _well_apart(*things):
            return Scene(tuple(things))


def _random_center(rng: random.Random, size: str, number: int) -> tuple[int, int]:
    border = RADIUS[size] + MARGIN
    lattice = [center for center in range(0, UNITS, LATTICE) if border <= center <= UNITS - border]
    if number == 1:  # captions name the place, so the center must not lie between two places
        lattice = [center for center in lattice if center not in PLACE_EDGES]
    return rng.choice(lattice), rng.choice(lattice)


def _well_apart(first: Thing, second: Thing) -> bool:
    """Returns True if two things do not touch and their relation is unambiguous."""
    dx, dy = abs(first.x - second.x), abs(first.y - second.y)
    longer, shorter = max(dx, dy), min(dx, dy)
    apart = longer >= RADIUS[first.size] + RADIUS[second.size] + GAP
    return apart and 2 * shorter <= longer


def _belongs_to_validation(scene: Scene) -> bool:
    # This text defines the split, so its spelling must not change.
    key = repr(scene).replace("color=", "colour=")
    return zlib.crc32(key.encode()) % 8 == 0


# -- rendering --------------------------------------------------------------------------------


def _polygon(*corners: tuple[float, float]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Returns a test for points inside a polygon (even-odd rule)."""

    def inside(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        result = np.zeros(np.broadcast(u, v).shape, dtype=bool)
        for (u0, v0), (u1, v1) in zip(corners, corners[1:] + corners[:1], strict=True):
            if v0 != v1:
                crosses = (v0 > v) != (v1 > v)
                result ^= crosses & (u < u0 + (v - v0) * (u1 - u0) / (v1 - v0))
        return result

    return inside


def _star(inner: float) -> tuple[tuple[float, float], ...]:
    radii = [1.0, inner] * 5
    return tuple((r * sin(k * pi / 5), -r * cos(k * pi / 5)) for k, r in enumerate(radii))


# Tests for the point (u, v) inside the shape of radius 1 around (0, 0). The proportions keep any
# two shapes distinguishable at a width of nine pixels.
SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda u, v: u**2 + v**2 <= 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.95,
    "triangle": _polygon((0, -0.95), (1, 0.85), (-1, 0.85)),
    "diamond": lambda u, v: abs(u) + abs(v) <= 1,
    "star": _polygon(*_star(inner=0.45)),
    "ring": lambda u, v: abs(u**2 + v**2 - 0.64) <= 0.36,
}
_PAIRS = [(color, shape) for color in PALETTE for shape in SHAPES]
_KNOWN_PAIRS = [pair for pair in _PAIRS if pair not in HELD_OUT]


def render(scene: Scene, image_size: int = UNITS) -> np.ndarray:
    """Renders a scene with antialiased edges: uint8 [image_size, image_size, 3].

    Raises:
        UserError: `image_size` is below 32. Small shapes are not distinguishable there.
    """
    if image_size < UNITS:
        raise UserError(
            f"image_size={image_size} is too small for shapes: set {UNITS} or more, or choose "
            "other data"
        )
    scale = image_size / UNITS
    image = np.full((image_size, image_size, 3), BACKGROUND, dtype=np.float32)
    for thing in scene.things:
        x, y = thing.x * scale, thing.y * scale
        left, top = int(x), int(y)
        cover = coverage(thing.shape, RADIUS[thing.size] * scale, x - left, y - top)
        reach = len(cover) // 2  # the middle pixel of `cover` is (top, left)
        rows = np.arange(max(top - reach, 0), min(top + reach + 1, image_size))[:, None]
        columns = np.arange(max(left - reach, 0), min(left + reach + 1, image_size))[None, :]
        alpha = cover[rows - top + reach, columns - left + reach, None]
        color = np.array(PALETTE[thing.color], dtype=np.float32)
        image[rows, columns] += alpha * (color - image[rows, columns])
    return (image + 0.5).astype(np.uint8)


@lru_cache(maxsize=4096)
def coverage(shape: str, radius: float, dx: float, dy: float, samples: int = 8) -> np.ndarray:
    """Returns the covered fraction of each pixel: float32 [2R+1, 2R+1], R = ceil(radius) + 1.

    The result is cached: do not write to it.

    Args:
        radius: of the shape, in pixels.
        dx, dy: offset of the shape's center from the top left corner of the middle pixel, in
            pixels, each in [0, 1).
        samples: a pixel is sampled at samples x samples points.
    """
    reach = int(np.ceil(radius)) + 1
    side = 2 * reach + 1
    points = (np.arange(side * samples) + 0.5) / samples - reach
    inside = SHAPES[shape]((points[None, :] - dx) / radius, (points[:, None] - dy) / radius)
    return inside.reshape(side, samples, side, samples).mean((1, 3)).astype(np.float32)
