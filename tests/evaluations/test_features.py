"""Tests of the features of image sets."""

import torch

from tilewright.evaluations.features import write_image_folder
from tilewright.viz.images import open_image


def test_a_written_folder_replaces_the_previous_images(tmp_path):
    write_image_folder(torch.zeros(3, 3, 4, 4), tmp_path / "real")
    folder = write_image_folder(torch.ones(2, 3, 4, 4), tmp_path / "real")
    assert [path.name for path in sorted(folder.iterdir())] == ["00000.png", "00001.png"]
    assert open_image(folder / "00000.png").getpixel((0, 0)) == (255, 255, 255)
