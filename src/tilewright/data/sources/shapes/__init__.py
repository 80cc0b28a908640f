"""The embedded data set: colored shapes, captions that are always true, and a checker."""

from tilewright.data.sources.shapes.checker import (
    ShapesChecker,
    Sighting,
    Verdict,
    check,
    judge,
    look,
    read,
)
from tilewright.data.sources.shapes.grammar import (
    Claim,
    Description,
    alterations,
    captions,
    claims,
    kind,
    parse,
    say,
)
from tilewright.data.sources.shapes.source import ShapesSource
from tilewright.data.sources.shapes.world import (
    HELD_OUT,
    PALETTE,
    RADIUS,
    SHAPES,
    SPLITS,
    WORLD_VERSION,
    Scene,
    Thing,
    render,
    sample_scene,
)

__all__ = [
    "HELD_OUT",
    "PALETTE",
    "RADIUS",
    "SHAPES",
    "SPLITS",
    "WORLD_VERSION",
    "Claim",
    "Description",
    "Scene",
    "ShapesChecker",
    "ShapesSource",
    "Sighting",
    "Thing",
    "Verdict",
    "alterations",
    "captions",
    "check",
    "claims",
    "judge",
    "kind",
    "look",
    "parse",
    "read",
    "render",
    "sample_scene",
    "say",
]
