"""Calibration of the checker: its thresholds were chosen to reach these rates."""

from collections.abc import Callable
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from tilewright.data.sources.shapes import (
    PALETTE,
    RADIUS,
    SHAPES,
    CaptionCheck,
    Scene,
    Thing,
    altered_claims,
    caption_is_true,
    check_caption,
    detect_objects,
    read_scene,
    render,
    sample_scene,
    true_claims,
)
from tilewright.errors import UserError

SCENES = [sample_scene(11, split, i) for split in ("train", "zeroshot") for i in range(250)]
KINDS = [(shape, size) for shape in SHAPES for size in RADIUS]


def single(shape: str, size: str, color: str = "red", x: float = 16, y: float = 16) -> np.ndarray:
    return render(Scene((Thing(shape, color, size, x, y),)))


def damage(kind: str, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns float [3, H, W], as a decoder does."""
    result = image.astype(np.float32) / 255
    scale = len(image) / 32
    if kind in ("blur", "all"):
        result = ndimage.gaussian_filter(result, (0.5 * scale, 0.5 * scale, 0))
    if kind in ("shift", "all"):
        result = result + rng.choice([-0.05, 0.05], 3)
    if kind in ("noise", "all"):
        result = result + rng.normal(0, 0.03, result.shape)
    return result.clip(0, 1).transpose(2, 0, 1)


def true_rate(images: list[np.ndarray]) -> float:
    """Returns the share of the images for which the most specific true claim passes."""
    pairs = zip(images, SCENES, strict=True)
    return float(
        np.mean([check_caption(image, true_claims(scene)[-1]).passed for image, scene in pairs])
    )


def readable_rate(images: list[np.ndarray]) -> float:
    return float(np.mean([read_scene(image) is not None for image in images]))


@pytest.mark.parametrize("image_size", [32, 48, 64])
def test_true_claims_pass(image_size: int) -> None:
    assert true_rate([render(scene, image_size) for scene in SCENES]) >= 0.999


@pytest.mark.parametrize("kind", ["noise", "blur", "shift", "all"])
def test_true_claims_pass_under_mild_damage(kind: str) -> None:
    rng = np.random.default_rng(0)
    assert true_rate([damage(kind, render(scene), rng) for scene in SCENES]) >= 0.99


@pytest.mark.parametrize("kind", ["none", "all"])
def test_one_wrong_attribute_fails_and_is_reported(kind: str) -> None:
    rng = np.random.default_rng(0)
    for scene in SCENES[::20]:
        image = damage(kind, render(scene), rng)
        for claim in true_claims(scene):
            for attribute, altered in altered_claims(claim):
                result = check_caption(image, altered)
                assert not result.passed
                assert getattr(result, attribute) is False


def test_read_scene_inverts_render() -> None:
    for scene in SCENES[:100]:
        detected = read_scene(render(scene))
        assert detected is not None
        for thing, true in zip(detected.things, scene.things, strict=True):
            assert (thing.shape, thing.color, thing.size) == (true.shape, true.color, true.size)
            assert abs(thing.x - true.x) < 0.1
            assert abs(thing.y - true.y) < 0.1


def test_positions_between_pixels_are_read() -> None:
    rng = np.random.default_rng(0)
    for shape, size in KINDS:
        x, y = rng.uniform(10, 22, 2)
        detected = read_scene(single(shape, size, x=x, y=y))
        assert detected is not None
        thing = detected.things[0]
        assert (thing.shape, thing.size) == (shape, size)
        assert abs(thing.x - x) < 0.2
        assert abs(thing.y - y) < 0.2


def test_accepts_arrays_tensors_and_pil_images() -> None:
    image, caption = single("star", "small", "cyan"), "a small cyan star in the middle"
    floats = torch.from_numpy(image).permute(2, 0, 1) / 255
    for variant in (image, floats.numpy(), floats, floats.bfloat16(), Image.fromarray(image)):
        assert caption_is_true(variant, caption)
        assert not caption_is_true(variant, "a small cyan star at the top")


def test_half_a_shape_is_not_read() -> None:
    for shape, size in KINDS:
        image = single(shape, size)
        for side in (np.s_[:, :16], np.s_[:, 16:], np.s_[:16], np.s_[16:]):
            half = image.copy()
            half[side] = 255
            assert read_scene(half) is None, (shape, size)


def test_a_shape_of_two_colors_is_not_read() -> None:
    images = []
    for shape, size in KINDS:
        for left, right in permutations(PALETTE, 2):
            image = single(shape, size, left)
            image[:, 16:] = single(shape, size, right)[:, 16:]
            images.append(image)
    assert readable_rate(images) <= 0.01


def test_the_mean_of_two_shapes_is_rarely_read() -> None:
    images = [
        np.mean([single(*first), single(*second)], axis=0).astype(np.uint8)
        for first, second in combinations(KINDS, 2)
        if first[0] != second[0]
    ]
    assert readable_rate(images) <= 0.06


def test_random_blobs_are_rarely_read() -> None:
    rng = np.random.default_rng(0)
    images = []
    for _ in range(200):
        field = ndimage.gaussian_filter(rng.normal(size=(32, 32)), 2.5)
        ink = (field / field.std() * 4 - 5).clip(0, 1)[..., None]
        images.append((255 + ink * (np.array(PALETTE["red"]) - 255)).astype(np.uint8))
    assert readable_rate(images) <= 0.05


def test_specks_are_ignored_and_larger_blobs_are_counted() -> None:
    image = single("circle", "small", "green")
    image[2:4, 2:4] = 0
    assert caption_is_true(image, "a small green circle")
    image[2:5, 2:5] = 0
    assert check_caption(image, "a small green circle") == CaptionCheck(number=False)


def test_two_touching_things_do_not_count_as_two() -> None:
    image = single("square", "small", "red", x=10)
    image[:, 14:] = single("square", "small", "blue", x=18)[:, 14:]
    assert not caption_is_true(image, "a small red square and a small blue square")


def test_result_reports_the_wrong_attribute() -> None:
    image = render(
        Scene((Thing("circle", "red", "large", 9, 16), Thing("star", "blue", "small", 25, 16)))
    )
    good = CaptionCheck(number=True, color=True, shape=True, size=True)
    assert check_caption(image, "a small blue star and a large red circle") == good
    assert check_caption(image, "a small blue star with a large cyan circle").color is False
    wrong = check_caption(image, "a small blue star left of a large red circle")
    assert wrong == CaptionCheck(number=True, color=True, shape=True, size=True, relation=False)
    assert check_caption(image, "a large red circle") == CaptionCheck(number=False)


@pytest.mark.parametrize("fill", [np.zeros_like, np.ones_like])
def test_an_empty_image_has_no_scene(fill: Callable[..., np.ndarray]) -> None:
    image = fill(np.empty((32, 32, 3), np.uint8)) * 255
    assert read_scene(image) is None
    assert not caption_is_true(image, "a large black square")
    assert len(detect_objects(image)) <= 1


def test_captions_outside_the_grammar_are_rejected() -> None:
    with pytest.raises(UserError, match="dog"):
        caption_is_true(single("star", "small"), "a large red dog")


@pytest.mark.parametrize("shape", [(32, 32), (3, 32, 48), (1, 3, 32, 32), (3, 16, 16)])
def test_other_array_shapes_are_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"the image (is|has)"):
        detect_objects(np.zeros(shape, np.float32))
