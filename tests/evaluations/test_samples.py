"""Pictures that are drawn for an evaluation."""

from pathlib import Path

import pytest
import torch

from tilewright.evaluations import samples
from tilewright.evaluations.samples import draw, write_folder
from tilewright.prior import Sampling
from tilewright.viz.images import open_picture


class Data:
    def examples(self, split, count):
        return [(torch.full((3, 8, 8), i / 10), f"{split} {i}") for i in range(5)][:count]


@pytest.fixture
def calls(monkeypatch):
    """What was drawn so far: captions, sampling, seed."""
    made = []

    class Model:
        def images(self, captions, *, sampling, seed):
            made.append((captions, sampling, seed))
            return torch.full((len(captions), 1, 3, 8, 8), seed / 10)

    monkeypatch.setattr(samples.TextToImage, "from_run", lambda run, device: Model())
    draw.cache_clear()
    return made


def test_metrics_of_one_command_share_what_is_drawn(calls):
    data, sampling = Data(), Sampling(temperature=0.5)
    first = draw(Path("run"), data, "validation", 3, sampling, 1, "cpu")
    again = draw(Path("run"), data, "validation", 3, Sampling(temperature=0.5), 1, "cpu")
    assert first is again
    assert calls == [(("validation 0", "validation 1", "validation 2"), sampling, 1)]
    assert first.captions == ["validation 0", "validation 1", "validation 2"]
    assert first.real.shape == first.drawn.shape == (3, 3, 8, 8)
    assert first.real[2, 0, 0, 0] == pytest.approx(0.2)


@pytest.mark.parametrize(
    "other",
    [
        {"run": Path("other")},
        {"data": Data()},
        {"split": "zeroshot"},
        {"count": 2},
        {"sampling": Sampling(top_k=4)},
        {"seed": 2},
    ],
)
def test_anything_else_is_drawn_anew(calls, other):
    how = {"run": Path("run"), "data": Data(), "split": "validation", "count": 3}
    how |= {"sampling": Sampling(), "seed": 1, "device": "cpu"}
    draw(*how.values())
    draw(*(how | other).values())
    assert len(calls) == 2


def test_the_grid_shows_drawn_beside_real(calls, tmp_path):
    draw(Path("run"), Data(), "validation", 5, Sampling(), 10, "cpu").show(tmp_path / "a.png")
    grid = open_picture(tmp_path / "a.png")
    assert grid.getpixel((50, 24 + 50)) == (255, 255, 255)  # drawn at seed 10
    assert grid.getpixel((150, 24 + 50)) == (0, 0, 0)  # the first real one


def test_a_folder_holds_the_newest_pictures_only(tmp_path):
    write_folder(torch.zeros(3, 3, 4, 4), tmp_path / "real")
    folder = write_folder(torch.ones(2, 3, 4, 4), tmp_path / "real")
    assert [path.name for path in sorted(folder.iterdir())] == ["00000.png", "00001.png"]
    assert open_picture(folder / "00000.png").getpixel((0, 0)) == (255, 255, 255)
