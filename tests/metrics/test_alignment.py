"""Tests of the alignment of images with captions."""

import torch

from tilewright.metrics.alignment import Share, alignment_by_category


class BrightnessChecker:
    """Checker of the captions "bright image" and "dark image"; a category is a first word."""

    def matches(self, image, caption):
        return (image.mean() > 0.5).item() == caption.startswith("bright")

    def category(self, caption):
        return caption.split()[0]


def test_alignment_is_counted_by_category():
    captions = ["bright image", "dark image", "bright image", "bright image"]
    images = torch.tensor([1.0, 1.0, 0.0, 0.9])[:, None, None, None].expand(-1, 3, 4, 4)
    assert alignment_by_category(BrightnessChecker(), captions, images) == {
        "bright": Share(2, 3),
        "dark": Share(0, 1),
    }


def test_the_interval_is_wilsons():
    # (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n), computed by hand
    assert Share(3, 10).interval == [0.1078, 0.6032]
    low, high = Share(50, 50).interval
    assert high == 1
    assert 0.92 < low < 0.93
