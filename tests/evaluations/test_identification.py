"""Tests of metric=identification."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tilewright.data.sources.emoji import EmojiSource
from tilewright.errors import UserError
from tilewright.evaluations import features, generation, identification
from tilewright.evaluations.identification import Identification
from tilewright.viz.images import open_image

STYLES = ("twemoji", "openmoji")
SPLITS = {  # style and number of each image
    "train": [("openmoji", 0), ("twemoji", 1), ("twemoji", 2), ("openmoji", 3)],
    "validation": [(style, number) for number in (4, 5) for style in STYLES],
    "zeroshot": [("twemoji", 0), ("openmoji", 1), ("openmoji", 2), ("twemoji", 3)],
}


def make_image(style, number):
    """Returns an image whose gray stands for the number and whose red for the style."""
    image = torch.full((3, 8, 8), number / 8)
    image[0] = STYLES.index(style)
    return image


class Data:
    splits = tuple(SPLITS)

    def __init__(self, source, folder):
        self.caption_styles = source.caption_styles
        self.cache = folder / "codes"

    def examples(self, split, count):
        pairs = [(make_image(*key), f"{key[0]} of number {key[1]}") for key in SPLITS[split]]
        return pairs[:count]


class Model:
    """Model that generates the caption's image, except a 5 for each 3; tokens are red and gray."""

    def encode(self, images):
        return (images[:, :2] * 8).long()

    def generate(self, captions, **settings):
        keys = [caption.split(" of number ") for caption in captions]
        numbers = [(style, 5 if number == "3" else int(number)) for style, number in keys]
        images = torch.stack([make_image(*key) for key in numbers])[:, None]
        return SimpleNamespace(images=images)

    def decode(self, tokens):
        """Decodes tokens [C, n, 2, 8, 8] to images [C, n, 3, 8, 8]."""
        red, gray = tokens.unbind(dim=2)
        return torch.stack([red, gray, gray], dim=2) / 8


@pytest.fixture
def measure(monkeypatch, tmp_path):
    for module in (generation, identification):
        monkeypatch.setattr(module.TextToImage, "from_run", lambda run, device: Model())
    eye = SimpleNamespace(name="eye", digest="0")
    monkeypatch.setattr(features, "load_extractor", lambda *_: eye)

    def folder_features(folder, *args, **kwargs):
        """Returns features with an angle for the number and a third coordinate for the style."""
        pixels = [open_image(path).getpixel((0, 0)) for path in sorted(folder.iterdir())]
        red, gray = np.array([pixel[:2] for pixel in pixels]).T / 255
        return np.stack([np.cos(gray), np.sin(gray), red], axis=1)

    monkeypatch.setattr(features, "folder_features", folder_features)
    monkeypatch.setattr(generation.runs, "trained_steps", lambda run: 7)
    generation._generate.cache_clear()

    def measure(among, styles=STYLES, splits=tuple(SPLITS)):
        data = Data(EmojiSource("", styles=styles), tmp_path)
        data.splits = splits
        folder = tmp_path / "out"
        evaluation = Identification(among=among)
        results = evaluation(tmp_path, data, seed=0, device="cpu", folder=folder)
        assert (folder / "zeroshot.png").is_file()
        return {(r.settings["top"], r.settings["image_set"]): r.value for r in results}

    return measure


def test_shares_of_known_images(measure):
    assert measure(among=4) == {
        (1, "generated"): 3 / 4,  # a 5 replaces the 3, and the validation split has a 5
        (1, "reconstructed"): 1,
        # The same number in the other style is nearest among images of the caption's style.
        (1, "other style"): 1,
    }


def test_too_few_candidates_are_an_error(measure):
    with pytest.raises(UserError, match=r"4 candidates of the style .* set metric\.among=4"):
        measure(among=100)


def test_a_single_style_has_no_other_style(measure):
    shares = measure(among=4, styles=("twemoji",))
    assert {image_set for _, image_set in shares} == {"generated", "reconstructed"}


def test_the_other_style_is_left_out_if_an_image_is_missing(measure):
    shares = measure(among=4, splits=("validation", "zeroshot"))
    assert {image_set for _, image_set in shares} == {"generated", "reconstructed"}
