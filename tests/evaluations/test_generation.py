"""Tests of the generated images that evaluations share."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tilewright.evaluations import generation
from tilewright.evaluations.generation import generate_images
from tilewright.prior import Sampling
from tilewright.viz.images import open_image


class Data:
    def examples(self, split, count):
        return [(torch.full((3, 8, 8), i / 10), f"{split} {i}") for i in range(5)][:count]


@pytest.fixture
def calls(monkeypatch):
    """Captions, sampling and seed of each call of the model."""
    calls = []

    class Model:
        def generate(self, captions, *, sampling, seed):
            calls.append((captions, sampling, seed))
            images = torch.full((len(captions), 1, 3, 8, 8), seed / 10)
            return SimpleNamespace(images=images)

    monkeypatch.setattr(generation.TextToImage, "from_run", lambda run, device: Model())
    monkeypatch.setattr(generation.runs, "trained_steps", lambda run: 7)
    generation._generate.cache_clear()
    return calls


def test_metrics_of_one_command_share_the_images(calls):
    data, sampling = Data(), Sampling(temperature=0.5)
    first = generate_images(Path("run"), data, "validation", 3, sampling, 1, "cpu")
    again = generate_images(Path("run"), data, "validation", 3, Sampling(temperature=0.5), 1, "cpu")
    assert first is again
    assert calls == [(("validation 0", "validation 1", "validation 2"), sampling, 1)]
    assert first.captions == ["validation 0", "validation 1", "validation 2"]
    assert first.real.shape == first.generated.shape == (3, 3, 8, 8)
    assert first.real[2, 0, 0, 0] == pytest.approx(0.2)


@pytest.mark.parametrize(
    "change",
    [
        {"run": Path("other")},
        {"data": Data()},
        {"split": "zeroshot"},
        {"count": 2},
        {"sampling": Sampling(top_k=4)},
        {"seed": 2},
    ],
)
def test_any_other_argument_generates_new_images(calls, change):
    arguments = {"run": Path("run"), "data": Data(), "split": "validation", "count": 3}
    arguments |= {"sampling": Sampling(), "seed": 1, "device": "cpu"}
    generate_images(*arguments.values())
    generate_images(*(arguments | change).values())
    assert len(calls) == 2


def test_new_weights_of_a_run_generate_new_images(calls, monkeypatch):
    arguments = (Path("run"), Data(), "validation", 3, Sampling(), 1, "cpu")
    generate_images(*arguments)
    monkeypatch.setattr(generation.runs, "trained_steps", lambda run: 8)  # it is still training
    generate_images(*arguments)
    assert len(calls) == 2


def test_the_grid_shows_generated_images_left_of_real_ones(calls, tmp_path):
    images = generate_images(Path("run"), Data(), "validation", 5, Sampling(), 10, "cpu")
    images.save_grid(tmp_path / "a.png")
    grid = open_image(tmp_path / "a.png")
    assert grid.getpixel((50, 24 + 50)) == (255, 255, 255)  # generated with seed 10
    assert grid.getpixel((150, 24 + 50)) == (0, 0, 0)  # the first real image
