"""Shares of pictures that show what their captions say."""

import random

import torch

from tilewright.data.sources.shapes import captions, kind, render, sample_scene
from tilewright.metrics.alignment import Share, alignment


def test_shares_by_kind_of_caption():
    scenes = [sample_scene(0, "train", number) for number in range(60)]
    said = [captions(scene, random.Random(0), 1)[0] for scene in scenes]
    images = torch.stack([torch.from_numpy(render(scene, 32)).permute(2, 0, 1) for scene in scenes])
    images = images / 255
    shares = alignment(said, images)
    assert sum(share.trials for share in shares.values()) == 60
    assert all(share.value == 1 for share in shares.values())

    wrong = torch.tensor([kind(caption) == "one object" for caption in said])
    images[wrong] = 1.0  # nothing is drawn
    shares = alignment(said, images)
    assert shares["one object"] == Share(0, int(wrong.sum()))
    assert {share.value for name, share in shares.items() if name != "one object"} == {1}


def test_the_interval_is_wilsons():
    # (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n) by hand
    assert Share(3, 10).interval == [0.1078, 0.6032]
    low, high = Share(50, 50).interval
    assert high == 1
    assert 0.92 < low < 0.93
