"""Grids of pictures and pictures in files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tilewright.errors import UserError
from tilewright.viz.images import (
    SMALLEST,
    captioned_grid,
    comparison,
    enlarged,
    open_picture,
    save,
    save_tensor,
    to_picture,
)


def test_small_images_are_enlarged_pixel_by_pixel():
    images = torch.rand(2, 3, 16, 16)
    large = enlarged(images)
    assert large.shape == (2, 3, 96, 96)
    assert torch.equal(large[..., ::6, ::6], images)
    assert torch.equal(large[..., 5::6, 5::6], images)
    big = torch.rand(1, 3, SMALLEST, SMALLEST)
    assert enlarged(big) is big


def test_comparison_puts_each_row_over_its_reconstructions():
    originals, reconstructions = torch.zeros(3, 3, 96, 96), torch.ones(3, 3, 96, 96)
    picture = comparison(originals, reconstructions, columns=2)
    assert picture.shape == (3, 4 * 100 + 4, 2 * 100 + 4)
    # rows of the grid: originals 0-1, reconstructions 0-1, original 2 ..., reconstruction 2
    assert [float(picture[0, 50 + 100 * row, 50]) for row in range(3)] == [0, 1, 0]


def test_captioned_grid_takes_tensors_and_pictures():
    images = torch.rand(2, 3, 3, 16, 16)
    pictures = [[Image.new("RGB", (16, 16), "red")] * 3 for _ in range(2)]
    captions = ["a red square", "un cercle — 赤い"]
    sizes = {captioned_grid(captions, rows).size for rows in (images, pictures)}
    assert len(sizes) == 1
    width, height = sizes.pop()
    assert (width, height) == (480, 2 * (96 + 8 + 24))
    red = captioned_grid(captions, pictures)
    assert red.getpixel((50, 24 + 50)) == (255, 0, 0)


def test_captioned_grid_shows_a_long_caption_whole():
    captions = ["there is a large yellow ring to the right of a small green star", "short"]
    narrow = captioned_grid(captions, torch.ones(2, 1, 3, 8, 8))
    wide = captioned_grid(captions, torch.ones(2, 99, 3, 8, 8))
    ink = [np.argwhere(np.array(grid)[:24].min(axis=(0, 2)) < 128).max() for grid in (narrow, wide)]
    assert ink[0] == ink[1]
    lines = captioned_grid(["two\nlines", "short"], torch.ones(2, 1, 3, 8, 8))
    assert lines.size == captioned_grid(["two lines", "short"], torch.ones(2, 1, 3, 8, 8)).size


def test_captioned_grid_of_so_many_columns():
    pictures = [[Image.new("RGB", (96, 96), color) for color in ("red", "lime", "blue")]] * 2
    grid = captioned_grid(["one", "two"], pictures, columns=2)
    assert grid.size == (480, 2 * (2 * 100 + 4 + 24))
    for top in (24, 204 + 2 * 24):
        assert grid.getpixel((150, top + 50)) == (0, 255, 0)
        assert grid.getpixel((50, top + 150)) == (0, 0, 255)


def test_settings_travel_in_a_png(tmp_path):
    settings = {"prompt": "un cercle 赤い", "seed": 3, "sampling": {"top_k": None}}
    picture = Image.new("RGB", (8, 8), "red")
    save(picture, tmp_path / "a.png", settings)
    save_tensor(torch.rand(3, 8, 8), tmp_path / "b.png", settings)
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as saved:
            assert json.loads(saved.text["tilewright"]) == settings
    save(picture, tmp_path / "c.png")
    with Image.open(tmp_path / "c.png") as saved:
        assert saved.text == {}


def test_a_picture_comes_back(tmp_path):
    image = torch.rand(3, 8, 8)
    save_tensor(image * 3 - 1, tmp_path / "new" / "a.png")  # values outside [0, 1] are clamped
    opened = open_picture(tmp_path / "new" / "a.png")
    assert opened.size == (8, 8)
    assert opened.mode == "RGB"
    save(opened, tmp_path / "other" / "b.png")
    assert open_picture(tmp_path / "other" / "b.png").tobytes() == opened.tobytes()


@pytest.mark.parametrize("content", [None, b"", b"no picture\n"])
def test_no_picture_is_one_line(tmp_path, content):
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        open_picture(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_picture_has_the_nearest_level():
    image = torch.tensor([0.0, 0.1, 0.5, 0.9999, 1.2, -0.1]).expand(3, 1, 6)
    levels = np.asarray(to_picture(image))[0, :, 0]
    assert levels.tolist() == [0, 26, 128, 255, 255, 0]
