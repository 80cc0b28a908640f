"""Image grids and PNG files."""

import json

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from tilewright.errors import UserError
from tilewright.viz.images import (
    MIN_SIDE,
    captioned_grid,
    make_grid,
    open_image,
    reconstruction_grid,
    save_png,
    side_by_side,
    to_pil,
    upscale_small,
)


def test_small_images_are_upscaled_by_repeating_pixels():
    images = torch.rand(2, 3, 16, 16)
    upscaled = upscale_small(images)
    assert upscaled.shape == (2, 3, 96, 96)
    assert torch.equal(upscaled[..., ::6, ::6], images)
    assert torch.equal(upscaled[..., 5::6, 5::6], images)
    large = torch.rand(1, 3, MIN_SIDE, MIN_SIDE)
    assert upscale_small(large) is large


@pytest.mark.parametrize("count", [1, 2, 5, 6])
@pytest.mark.parametrize("columns", [1, 3, 8])
def test_grid_equals_that_of_torchvision(count, columns):
    images = torch.rand(count, 3, 7, 5)
    expected = torchvision.utils.make_grid(images, nrow=columns, padding=4, pad_value=0.5)
    assert torch.equal(make_grid(images, columns), expected)


def test_reconstruction_grid_puts_each_row_above_its_reconstructions():
    originals, reconstructions = torch.zeros(3, 3, 96, 96), torch.ones(3, 3, 96, 96)
    grid = reconstruction_grid(originals, reconstructions, columns=2)
    assert grid.shape == (3, 4 * 100 + 4, 2 * 100 + 4)
    # Rows of the grid: originals 0 and 1, their reconstructions, original 2, its reconstruction.
    assert [float(grid[0, 50 + 100 * row, 50]) for row in range(4)] == [0, 1, 0, 1]


def test_captioned_grid_takes_tensors_and_pil_images():
    tensors = torch.rand(2, 3, 3, 16, 16)
    pil_images = [[Image.new("RGB", (16, 16), "red")] * 3 for _ in range(2)]
    captions = ["a red square", "un cercle — 赤い"]
    for images in (tensors, pil_images):
        assert captioned_grid(captions, images).size == (480, 2 * (96 + 8 + 24))
    assert captioned_grid(captions, pil_images).getpixel((50, 24 + 50)) == (255, 0, 0)


def test_captioned_grid_is_wide_enough_for_a_long_caption():
    captions = ["there is a large yellow ring to the right of a small green star", "short"]
    narrow = captioned_grid(captions, torch.ones(2, 1, 3, 8, 8))
    wide = captioned_grid(captions, torch.ones(2, 99, 3, 8, 8))
    ink_ends = [
        np.argwhere(np.array(grid)[:24].min(axis=(0, 2)) < 128).max() for grid in (narrow, wide)
    ]
    assert ink_ends[0] == ink_ends[1]


def test_captioned_grid_puts_a_caption_of_two_lines_on_one_line():
    images = torch.ones(2, 1, 3, 8, 8)
    two_lines = captioned_grid(["two\nlines", "short"], images)
    assert two_lines.tobytes() == captioned_grid(["two lines", "short"], images).tobytes()


def test_captioned_grid_starts_a_new_line_after_the_given_columns():
    images = [[Image.new("RGB", (96, 96), color) for color in ("red", "lime", "blue")]] * 2
    grid = captioned_grid(["one", "two"], images, columns=2)
    assert grid.size == (480, 2 * (2 * 100 + 4 + 24))
    for top in (24, 204 + 2 * 24):
        assert grid.getpixel((150, top + 50)) == (0, 255, 0)
        assert grid.getpixel((50, top + 150)) == (0, 0, 255)


def test_captions_have_accents_and_other_alphabets():
    blank = [Image.new("RGB", (96, 96))]
    captions = ["e", "é", "я", "λ"]
    grids = [captioned_grid([caption], [blank]).crop((0, 0, 20, 24)) for caption in captions]
    missing = captioned_grid(["\uffff"], [blank]).crop((0, 0, 20, 24))
    assert len({grid.tobytes() for grid in [*grids, missing]}) == len(captions) + 1


def test_side_by_side_places_each_image_below_its_title():
    images = {"before": Image.new("RGB", (40, 30), "red"), "after": Image.new("RGB", (50, 20))}
    canvas = side_by_side(images)
    assert canvas.size == (40 + 16 + 50, 28 + 30)
    assert canvas.getpixel((0, 28)) == (255, 0, 0)
    assert canvas.getpixel((40 + 16, 28)) == (0, 0, 0)
    assert canvas.getpixel((40 + 8, 28)) == (255, 255, 255)  # the gap


def test_metadata_is_stored_in_the_png(tmp_path):
    metadata = {"prompt": "un cercle 赤い", "seed": 3, "sampling": {"top_k": None}}
    for image in (Image.new("RGB", (8, 8), "red"), torch.rand(3, 8, 8)):
        save_png(image, tmp_path / "a.png", metadata)
        with Image.open(tmp_path / "a.png") as saved:
            assert json.loads(saved.text["tilewright"]) == metadata
        save_png(image, tmp_path / "b.png")
        with Image.open(tmp_path / "b.png") as saved:
            assert saved.text == {}


def test_saving_and_opening_preserves_pixels(tmp_path):
    image = torch.rand(3, 8, 8) * 3 - 1  # values outside [0, 1] are clamped
    save_png(image, tmp_path / "new" / "a.png")
    opened = open_image(tmp_path / "new" / "a.png")
    assert opened.mode == "RGB"
    assert opened.tobytes() == to_pil(image).tobytes()


@pytest.mark.parametrize("content", [None, b"", b"no image\n"], ids=["missing", "empty", "text"])
def test_an_unreadable_image_is_a_one_line_error(tmp_path, content):
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_float_values_round_to_the_nearest_8_bit_level():
    image = torch.tensor([0.0, 0.1, 0.5, 0.9999, 1.2, -0.1]).expand(3, 1, 6)
    levels = np.asarray(to_pil(image))[0, :, 0]
    assert levels.tolist() == [0, 26, 128, 255, 255, 0]
