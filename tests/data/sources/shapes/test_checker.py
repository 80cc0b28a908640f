"""The checker is calibrated here: these rates are what its thresholds were set for."""

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
    Scene,
    Thing,
    Verdict,
    alterations,
    check,
    claims,
    judge,
    look,
    read,
    render,
    sample_scene,
)
from tilewright.errors import UserError

SCENES = [sample_scene(11, split, i) for split in ("train", "zeroshot") for i in range(250)]
KINDS = [(shape, size) for shape in SHAPES for size in RADIUS]


def single(shape: str, size: str, color: str = "red", x: float = 16, y: float = 16) -> np.ndarray:
    return render(Scene((Thing(shape, color, size, x, y),)))


def damage(kind: str, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Float [3, H, W], as a decoder hands it over."""
    result = image.astype(np.float32) / 255
    scale = len(image) / 32
    if kind in ("blur", "all"):
        result = ndimage.gaussian_filter(result, (0.5 * scale, 0.5 * scale, 0))
    if kind in ("shift", "all"):
        result = result + rng.choice([-0.05, 0.05], 3)
    if kind in ("noise", "all"):
        result = result + rng.normal(0, 0.03, result.shape)
    return result.clip(0, 1).transpose(2, 0, 1)


def rate_of_true(images: list[np.ndarray]) -> float:
    """Share of the pictures for which the sharpest true claim passes."""
    pairs = zip(images, SCENES, strict=True)
    return float(np.mean([judge(image, claims(scene)[-1]).passed for image, scene in pairs]))


def rate_of_readable(images: list[np.ndarray]) -> float:
    return float(np.mean([read(image) is not None for image in images]))


@pytest.mark.parametrize("image_size", [32, 48, 64])
def test_true_pictures_pass(image_size: int) -> None:
    assert rate_of_true([render(scene, image_size) for scene in SCENES]) >= 0.999


@pytest.mark.parametrize("kind", ["noise", "blur", "shift", "all"])
def test_mild_damage_passes(kind: str) -> None:
    rng = np.random.default_rng(0)
    assert rate_of_true([damage(kind, render(scene), rng) for scene in SCENES]) >= 0.99


@pytest.mark.parametrize("kind", ["none", "all"])
def test_one_wrong_attribute_never_passes_and_is_named(kind: str) -> None:
    rng = np.random.default_rng(0)
    for scene in SCENES[::20]:
        image = damage(kind, render(scene), rng)
        for claim in claims(scene):
            for attribute, altered in alterations(claim):
                verdict = judge(image, altered)
                assert not verdict.passed
                assert getattr(verdict, attribute) is False


def test_read_is_the_inverse_of_render() -> None:
    for scene in SCENES[:100]:
        seen = read(render(scene))
        assert seen is not None
        for thing, true in zip(seen.things, scene.things, strict=True):
            assert (thing.shape, thing.color, thing.size) == (true.shape, true.color, true.size)
            assert abs(thing.x - true.x) < 0.1
            assert abs(thing.y - true.y) < 0.1


def test_any_position_between_pixels_is_read() -> None:
    rng = np.random.default_rng(0)
    for shape, size in KINDS:
        x, y = rng.uniform(10, 22, 2)
        seen = read(single(shape, size, x=x, y=y))
        assert seen is not None
        thing = seen.things[0]
        assert (thing.shape, thing.size) == (shape, size)
        assert abs(thing.x - x) < 0.2
        assert abs(thing.y - y) < 0.2


def test_images_come_as_arrays_tensors_and_pictures() -> None:
    image, caption = single("star", "small", "cyan"), "a small cyan star in the middle"
    floats = torch.from_numpy(image).permute(2, 0, 1) / 255
    for given in (image, floats.numpy(), floats, floats.bfloat16(), Image.fromarray(image)):
        assert check(given, caption)
        assert not check(given, "a small cyan star at the top")


def test_half_a_shape_is_no_shape() -> None:
    for shape, size in KINDS:
        whole = single(shape, size)
        for side in (np.s_[:, :16], np.s_[:, 16:], np.s_[:16], np.s_[16:]):
            half = whole.copy()
            half[side] = 255
            assert read(half) is None, (shape, size)


def test_a_shape_of_two_colors_is_no_shape() -> None:
    images = []
    for shape, size in KINDS:
        for one, other in permutations(PALETTE, 2):
            image = single(shape, size, one)
            image[:, 16:] = single(shape, size, other)[:, 16:]
            images.append(image)
    assert rate_of_readable(images) <= 0.01


def test_the_mean_of_two_shapes_is_no_shape() -> None:
    images = [
        np.mean([single(*one), single(*other)], axis=0).astype(np.uint8)
        for one, other in combinations(KINDS, 2)
        if one[0] != other[0]
    ]
    assert rate_of_readable(images) <= 0.06


def test_random_blobs_are_no_shapes() -> None:
    rng = np.random.default_rng(0)
    images = []
    for _ in range(200):
        field = ndimage.gaussian_filter(rng.normal(size=(32, 32)), 2.5)
        ink = (field / field.std() * 4 - 5).clip(0, 1)[..., None]
        images.append((255 + ink * (np.array(PALETTE["red"]) - 255)).astype(np.uint8))
    assert rate_of_readable(images) <= 0.05


def test_specks_are_overlooked_but_blots_are_counted() -> None:
    image = single("circle", "small", "green")
    image[2:4, 2:4] = 0
    assert check(image, "a small green circle")
    image[2:5, 2:5] = 0
    assert judge(image, "a small green circle") == Verdict(number=False)


def test_two_things_that_touch_are_not_two() -> None:
    image = single("square", "small", "red", x=10)
    image[:, 14:] = single("square", "small", "blue", x=18)[:, 14:]
    assert not check(image, "a small red square and a small blue square")


def test_verdict_says_what_is_wrong() -> None:
    image = render(
        Scene((Thing("circle", "red", "large", 9, 16), Thing("star", "blue", "small", 25, 16)))
    )
    good = Verdict(number=True, color=True, shape=True, size=True)
    assert judge(image, "a small blue star and a large red circle") == good
    assert judge(image, "a small blue star with a large cyan circle").color is False
    wrong = judge(image, "a small blue star left of a large red circle")
    assert wrong == Verdict(number=True, color=True, shape=True, size=True, relation=False)
    assert judge(image, "a large red circle") == Verdict(number=False)


@pytest.mark.parametrize("paint", [np.zeros_like, np.ones_like])
def test_a_picture_of_nothing_is_read_as_nothing(paint: Callable[..., np.ndarray]) -> None:
    image = paint(np.empty((32, 32, 3), np.uint8)) * 255
    assert read(image) is None
    assert not check(image, "a large black square")
    assert len(look(image)) <= 1


def test_captions_outside_the_grammar_are_refused() -> None:
    with pytest.raises(UserError, match="dog"):
        check(single("star", "small"), "a large red dog")


@pytest.mark.parametrize("shape", [(32, 32), (3, 32, 48), (1, 3, 32, 32), (3, 16, 16)])
def test_other_arrays_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="an image is"):
        look(np.zeros(shape, np.float32))
