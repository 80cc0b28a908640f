"""Pictures that are to be found by their captions, among those of other captions."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tilewright.data.sources.emoji import EmojiSource
from tilewright.errors import UserError
from tilewright.evaluations import identification, samples
from tilewright.evaluations.identification import Identification
from tilewright.viz.images import open_picture

STYLES = ("twemoji", "openmoji")
SPLITS = {  # what each emoji's picture shows, by split
    "train": [("openmoji", 0), ("twemoji", 1), ("twemoji", 2), ("openmoji", 3)],
    "validation": [(style, number) for number in (4, 5) for style in STYLES],
    "zeroshot": [("twemoji", 0), ("openmoji", 1), ("openmoji", 2), ("twemoji", 3)],
}


def picture(style, number):
    """A gray for the number, and a red for the style."""
    image = torch.full((3, 8, 8), number / 8)
    image[0] = STYLES.index(style)
    return image


class Data:
    splits = tuple(SPLITS)

    def __init__(self, source, folder):
        self.caption_styles = source.caption_styles
        self.cache = folder / "codes"

    def examples(self, split, count):
        pairs = [(picture(*key), f"{key[0]} of number {key[1]}") for key in SPLITS[split]]
        return pairs[:count]


class Model:
    """Draws what the caption says, but that it takes each 3 for a 5; tokens are red and gray."""

    image_tokenizer = SimpleNamespace(encode=lambda images: (images[:, :2] * 8).long())

    def images(self, captions, **how):
        keys = [caption.split(" of number ") for caption in captions]
        numbers = [(style, 5 if number == "3" else int(number)) for style, number in keys]
        return torch.stack([picture(*key) for key in numbers])[:, None]

    def decode(self, tokens):
        """Tokens [C, n, 2, 8, 8] to pictures [C, n, 3, 8, 8]."""
        red, gray = tokens.unbind(dim=2)
        return torch.stack([red, gray, gray], dim=2) / 8


@pytest.fixture
def measure(monkeypatch, tmp_path):
    for module in (samples, identification):
        monkeypatch.setattr(module.TextToImage, "from_run", lambda run, device: Model())
    eye = SimpleNamespace(name="eye", digest="0")
    monkeypatch.setattr(identification, "find_extractor", lambda device, weights: eye)

    def features(folder, *how, **more):
        """An angle for the number and a lift for the style."""
        pixels = [open_picture(path).getpixel((0, 0)) for path in sorted(folder.iterdir())]
        red, gray = np.array([pixel[:2] for pixel in pixels]).T / 255
        return np.stack([np.cos(gray), np.sin(gray), red], axis=1)

    monkeypatch.setattr(identification, "folder_features", features)
    samples.draw.cache_clear()

    def measure(among, styles=STYLES, splits=tuple(SPLITS)):
        data = Data(EmojiSource("", styles=styles), tmp_path)
        data.splits = splits
        how = {"seed": 0, "device": "cpu", "folder": tmp_path / "out"}
        results = Identification(among=among)(tmp_path, data, **how)
        assert (tmp_path / "out" / "zeroshot.png").is_file()
        return {(r.settings["top"], r.settings["pictures"]): r.value for r in results}

    return measure


def test_shares_by_hand(measure):
    assert measure(among=4) == {
        (1, "drawn"): 3 / 4,  # the 3 is drawn as a 5, which is in the validation split
        (5, "drawn"): 1,
        (1, "reconstructed"): 1,
        (5, "reconstructed"): 1,
        # The same number in the other style, among pictures of this one's style.
        (1, "other style"): 1,
        (5, "other style"): 1,
    }


def test_too_few_pictures_are_told_with_the_way_out(measure):
    with pytest.raises(UserError, match=r"4 held-out pictures of the style .* metric\.among=4"):
        measure(among=100)


def test_one_style_has_no_other(measure):
    figures = measure(among=4, styles=("twemoji",))
    assert {pictures for _, pictures in figures} == {"drawn", "reconstructed"}


def test_pictures_of_the_other_style_that_cannot_be_used_leave_it_out(measure):
    figures = measure(among=4, splits=("validation", "zeroshot"))
    assert {pictures for _, pictures in figures} == {"drawn", "reconstructed"}
