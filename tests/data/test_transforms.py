"""Image transforms: size, position and scale of the crops."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from tilewright.data.transforms import CenterCrop, RandomApply, StageOneCrop, StageTwoCrop
from tilewright.errors import UserError

SIZES = [(64, 64), (200, 90), (90, 200), (65, 64), (30, 20), (1, 500)]


def ramp(width, height):
    """Returns an image whose red grows from left to right and green from top to bottom."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


@pytest.mark.parametrize("crop", [StageOneCrop(64), StageTwoCrop(64), CenterCrop(64)])
@pytest.mark.parametrize("size", SIZES)
def test_result_has_the_requested_size(crop, size):
    for _ in range(20):
        assert crop(ramp(*size)).size == (64, 64)


@pytest.mark.parametrize("crop", [StageOneCrop(32), StageTwoCrop(32)])
def test_crops_depend_on_the_torch_seed_only(crop):
    def crops(seed):
        torch.manual_seed(seed)
        return [crop(ramp(100, 60)).tobytes() for _ in range(5)]

    assert crops(1) == crops(1)
    assert crops(1) != crops(2)
    assert len(set(crops(1))) > 1


def test_center_crop_returns_an_image_of_the_right_size_unchanged():
    image = ramp(48, 48)
    assert CenterCrop(48)(image) is image


def test_center_crop_keeps_the_pixels_of_the_center():
    image = ramp(80, 48)
    expected = np.asarray(image)[:, 16:64]
    np.testing.assert_array_equal(np.asarray(CenterCrop(48)(image)), expected)


def test_shrinking_averages_areas():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    expected = pixels.reshape(16, 4, 16, 4, 3).mean((1, 3))
    shrunk = np.asarray(CenterCrop(16)(Image.fromarray(pixels)), float)
    assert np.abs(shrunk - expected).max() <= 1


def test_enlarging_is_smooth():
    enlarged = np.asarray(CenterCrop(64)(ramp(8, 8)))[32, :, 0]
    assert len(np.unique(enlarged)) > 32  # nearest or box would repeat 8 values


def scale_of(image, source):
    """Returns the number of source pixels per pixel of a crop of a ramp."""
    row = np.asarray(image, float)[32, :, 0]
    return abs(row[-1] - row[0]) / 255 * (source - 1) / (len(row) - 1)


def test_stage_one_resizes_to_9_to_12_eighths():
    torch.manual_seed(0)
    spans = [scale_of(StageOneCrop(64)(ramp(512, 512)), 512) for _ in range(300)]
    sides = 512 / np.array(spans)
    assert sides.min() == pytest.approx(72, abs=1.5)
    assert sides.max() == pytest.approx(96, abs=1.5)


def test_stage_two_resizes_to_8_to_9_eighths():
    torch.manual_seed(0)
    spans = [scale_of(StageTwoCrop(64)(ramp(512, 512)), 512) for _ in range(300)]
    sides = 512 / np.array(spans)
    assert sides.min() == pytest.approx(64, abs=1)
    assert sides.max() == pytest.approx(72, abs=1.5)


def count_flipped(crop):
    """Returns the number of mirrored images among 200 crops."""
    torch.manual_seed(0)
    rows = [np.asarray(crop(ramp(128, 128)), int)[0, :, 0] for _ in range(200)]
    return sum(row[0] > row[-1] for row in rows)


@pytest.mark.parametrize("kind", [StageOneCrop, StageTwoCrop])
def test_half_of_the_images_are_flipped_or_none(kind):
    assert 70 < count_flipped(kind(64, flip=True)) < 130
    assert count_flipped(kind(64, flip=False)) == 0


@pytest.mark.parametrize(
    "caption",
    [
        "a dog left of a cat",
        "an arrow to the Right",
        "a street sign",
        'a shirt with "hello" on it',
        "the letter b",
        "a bus with the number 7",
        "a counterclockwise arrow",
    ],
)
def test_an_image_whose_caption_mentions_a_side_or_writing_is_not_flipped(caption):
    crop = StageTwoCrop(64, flip=True).for_captions(["a dog", caption])
    assert count_flipped(crop) == 0


@pytest.mark.parametrize("caption", ["two dogs and a cat", "a bright leftover", "ein Hund"])
def test_an_image_with_other_captions_is_flipped(caption):
    crop = StageTwoCrop(64, flip=True).for_captions([caption])
    assert count_flipped(crop) > 70


def test_stage_two_crops_near_the_center_and_stage_one_anywhere():
    def lefts(crop):
        torch.manual_seed(0)
        # 64 pixels high, so nothing is resized. Red is the horizontal position.
        reds = [np.asarray(crop(ramp(256, 64)))[0, 0, 0] for _ in range(300)]
        return np.array(reds) / 255 * 255 / 192  # as a share of the range

    middle, anywhere = lefts(StageTwoCrop(64)), lefts(StageOneCrop(64, flip=False))
    assert middle.min() == pytest.approx(3 / 8, abs=0.02)
    assert middle.max() == pytest.approx(5 / 8, abs=0.02)
    assert anywhere.min() < 0.05
    assert anywhere.max() > 0.95


@pytest.mark.parametrize("crop", [StageOneCrop(64, flip=False), StageTwoCrop(64)])
def test_image_of_the_target_size_is_not_enlarged(crop):
    image = ramp(64, 64)
    assert crop(image).tobytes() == image.tobytes()


def test_a_share_of_the_images_is_recolored_as_by_torchvision():
    recolor = [lambda pixel: pixel + 1, lambda pixel: 2 * pixel]
    results = []
    for kind in (RandomApply, torchvision.transforms.RandomApply):
        torch.manual_seed(0)
        apply = kind(recolor, p=0.25)
        results.append([apply(1) for _ in range(400)])
    assert results[0] == results[1]
    assert results[0].count(4) == pytest.approx(100, abs=25)


@pytest.mark.parametrize("p", [2, -0.1, float("nan")])
def test_a_share_of_recolored_images_outside_0_to_1_is_refused(p):
    with pytest.raises(UserError, match=r"recoloring\.p=.* set a number from 0 to 1"):
        RandomApply([], p)


@pytest.mark.parametrize("crop", [StageOneCrop, StageTwoCrop, CenterCrop])
def test_an_empty_crop_is_refused(crop):
    with pytest.raises(UserError, match="size=0 is not possible"):
        crop(0)
