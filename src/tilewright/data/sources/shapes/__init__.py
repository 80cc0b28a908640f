"""Shapes dataset: rendered colored shapes, captions that are always true, and a checker.

The checker reads an image and decides whether a caption is true of it.
"""

from tilewright.data.sources.shapes.checker import (
    CaptionCheck,
    DetectedObject,
    ShapesChecker,
    caption_is_true,
    check_caption,
    detect_objects,
    read_scene,
)
from tilewright.data.sources.shapes.grammar import (
    Claim,
    Description,
    altered_claims,
    caption_kind,
    choose_captions,
    parse_caption,
    phrasings,
    true_claims,
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
    "CaptionCheck",
    "Claim",
    "Description",
    "DetectedObject",
    "Scene",
    "ShapesChecker",
    "ShapesSource",
    "Thing",
    "altered_claims",
    "caption_is_true",
    "caption_kind",
    "check_caption",
    "choose_captions",
    "detect_objects",
    "parse_caption",
    "phrasings",
    "read_scene",
    "render",
    "sample_scene",
    "true_claims",
]
