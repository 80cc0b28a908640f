"""The shapes world: what can be in a picture, how scenes are drawn by lot, how they are painted.

All lengths are in units: the picture is 32 units wide and high whatever its size in pixels, x goes
to the right and y goes down. At `image_size=32` a unit is a pixel.
"""

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin

import numpy as np

from tilewright.errors import UserError

# Part of the key under which rendered data is kept: raise it with any change to the pictures, the
# splits or the captions, or old renders would be taken for new ones.
WORLD_VERSION = 1

UNITS = 32
BACKGROUND = (255, 255, 255)

# Every two colors, and every color and the background, are at least 0.46 apart as RGB in [0, 1].
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

# (color, shape) pairs that no picture of train or validation has: every color once, every shape
# once or twice, so that each half of a pair is well known from other pairs.
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

# Centers lie on a lattice of 2 units: to a dVAE with tiles of 4 pixels an edge then falls in few
# ways across a tile, which a small codebook learns in minutes, yet the pictures still number
# millions.
LATTICE = 2
MARGIN = 1.0  # between a shape and the frame
GAP = 2.0  # between two shapes, at least
PLACE_EDGES = (12, 20)  # where left, middle and right (top, middle and bottom) meet


@dataclass(frozen=True, order=True)
class Thing:
    """One object; x and y are its center in units."""

    shape: str
    color: str
    size: str
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """One or two things, in no meaningful order (sampled scenes are sorted)."""

    things: tuple[Thing, ...]


# -- sampling ---------------------------------------------------------------------------------


def sample_scene(seed: int, split: str, index: int) -> Scene:
    """The scene of row `index` of a split: the same for the same three arguments, for ever.

    Train and validation share no scene: a hash of the scene says which of the two it may be in.
    Scenes of zeroshot have one held-out pair at least. Half of the scenes have two things.

    Raises:
        UserError: for an unknown split.
    """
    if split not in SPLITS:
        raise UserError(f'shapes has no split "{split}"; it has {", ".join(SPLITS)}')
    rng = random.Random(f"{seed}/{split}/{index}")
    while True:
        scene = _draw(rng, zeroshot=split == "zeroshot")
        if split == "zeroshot" or _of_validation(scene) == (split == "validation"):
            return scene


def relation(first: Thing, second: Thing) -> str:
    """Where `first` is, seen from `second`: "left", "right", "above" or "below"."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def place(thing: Thing) -> tuple[int, int]:
    """(column, row) of the thing's center in thirds of the picture, 0 to 2 each."""
    column, row = (sum(at >= edge for edge in PLACE_EDGES) for at in (thing.x, thing.y))
    return column, row


def _draw(rng: random.Random, zeroshot: bool) -> Scene:
    number = rng.choice((1, 2))
    pairs = [rng.choice(_PAIRS if zeroshot else _KNOWN_PAIRS) for _ in range(number)]
    if zeroshot:
        pairs[0] = rng.choice(sorted(HELD_OUT))
    kinds = [(shape, color, rng.choice(list(RADIUS))) for color, shape in pairs]
    if len(set(kinds)) < number:  # "left of" would say nothing about twins
        return _draw(rng, zeroshot)
    while True:
        things = tuple(sorted(Thing(*kind, *_position(rng, kind[2], number)) for kind in kinds))
        if number == 1 or _clear(*things):
            return Scene(things)


def _position(rng: random.Random, size: str, number: int) -> tuple[int, int]:
    reach = RADIUS[size] + MARGIN
    lattice = [at for at in range(0, UNITS, LATTICE) if reach <= at <= UNITS - reach]
    if number == 1:  # captions name places: stay off the lines between them
        lattice = [at for at in lattice if at not in PLACE_EDGES]
    return rng.choice(lattice), rng.choice(lattice)


def _clear(first: Thing, second: Thing) -> bool:
    """Whether two things lie well apart, and plainly beside or over each other."""
    dx, dy = abs(first.x - second.x), abs(first.y - second.y)
    main, other = max(dx, dy), min(dx, dy)
    apart = main >= RADIUS[first.size] + RADIUS[second.size] + GAP
    return apart and 2 * other <= main


def _of_validation(scene: Scene) -> bool:
    # Part of the data set's definition, hence the spelling: another text is another split.
    key = repr(scene).replace("color=", "colour=")
    return zlib.crc32(key.encode()) % 8 == 0


# -- painting ---------------------------------------------------------------------------------


def _polygon(*corners: tuple[float, float]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Inside test (even-odd rule) of a polygon with these corners."""

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


# Whether the point (u, v) is inside the shape of radius 1 around (0, 0). The proportions keep any
# two shapes apart when they are nine pixels wide.
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
    """Paint a scene, with smooth edges: uint8 [image_size, image_size, 3].

    Raises:
        UserError: if image_size is below 32, where small shapes stop being distinct.
    """
    if image_size < UNITS:
        raise UserError(f"shapes need image_size of {UNITS} or more, not {image_size}")
    scale = image_size / UNITS
    image = np.full((image_size, image_size, 3), BACKGROUND, dtype=np.float32)
    for thing in scene.things:
        x, y = thing.x * scale, thing.y * scale
        left, top = int(x), int(y)
        cover = coverage(thing.shape, RADIUS[thing.size] * scale, x - left, y - top)
        reach = len(cover) // 2  # the stencil's middle pixel is (top, left); cut it at the frame
        rows = np.arange(max(top - reach, 0), min(top + reach + 1, image_size))[:, None]
        columns = np.arange(max(left - reach, 0), min(left + reach + 1, image_size))[None, :]
        alpha = cover[rows - top + reach, columns - left + reach, None]
        color = np.array(PALETTE[thing.color], dtype=np.float32)
        image[rows, columns] += alpha * (color - image[rows, columns])
    return (image + 0.5).astype(np.uint8)


@lru_cache(maxsize=4096)
def coverage(shape: str, radius: float, dx: float, dy: float, samples: int = 8) -> np.ndarray:
    """How much of each pixel a shape covers: float32 [2R+1, 2R+1], R = ceil(radius) + 1.

    The shape's center is (dx, dy) pixels, each in [0, 1), from the top left corner of the middle
    pixel; every pixel is sampled in samples x samples points. Do not write into the result.
    """
    reach = int(np.ceil(radius)) + 1
    side = 2 * reach + 1
    points = (np.arange(side * samples) + 0.5) / samples - reach
    inside = SHAPES[shape]((points[None, :] - dx) / radius, (points[:, None] - dy) / radius)
    return inside.reshape(side, samples, side, samples).mean((1, 3)).astype(np.float32)
