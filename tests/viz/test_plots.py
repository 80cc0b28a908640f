"""Figures as PNG."""

import pytest
from matplotlib.axes import Axes
from PIL import Image

from tilewright.viz.plots import bars, curves


@pytest.fixture
def drawn(monkeypatch):
    """What was drawn: by method of matplotlib's axes, the arguments of its calls."""
    calls = {"plot": [], "fill_between": [], "bar": [], "set_xticks": []}
    for name in calls:
        plain = getattr(Axes, name)

        def noted(self, *arguments, name=name, plain=plain, **how):
            calls[name].append((arguments, how))
            return plain(self, *arguments, **how)

        monkeypatch.setattr(Axes, name, noted)
    return calls


def test_a_curve_for_each_name_with_its_interval(drawn, tmp_path):
    lines = {"seen": [(1, 0.5), (2, 0.7)], "new": [(1, 0.2, 0.1, 0.3), (2, 0.3, 0.2, 0.4)]}
    path = tmp_path / "new" / "a.png"
    curves(lines, path, across="N", up="share", log_x=True)
    assert Image.open(path).size == (960, 480)
    assert [(x, y, how["label"]) for (x, y), how in drawn["plot"]] == [
        ((1, 2), (0.5, 0.7), "seen"),
        ((1, 2), (0.2, 0.3), "new"),
    ]
    ((x, low, high), _), *others = drawn["fill_between"]
    assert (x, low, high) == ((1, 2), (0.1, 0.2), (0.3, 0.4))
    assert not others


def test_bars_stand_side_by_side_and_a_missing_one_leaves_its_place(drawn, tmp_path):
    groups = {
        "validation": {"one": (0.9, 0.8, 0.95), "two": (0.5, 0.4, 0.6)},
        "zeroshot": {"two": (0.2, 0.1, 0.4)},
    }
    bars(groups, tmp_path / "a.png", up="share")
    assert Image.open(tmp_path / "a.png").size == (960, 480)
    (seen, how), (new, _) = drawn["bar"]
    assert how["label"] == "validation"
    assert seen[0] == pytest.approx([-0.2, 0.8])
    assert new[0] == pytest.approx([1.2])
    assert seen[1] == (0.9, 0.5)
    assert how["yerr"][0] == pytest.approx([0.1, 0.1])
    assert how["yerr"][1] == pytest.approx([0.05, 0.1])
    assert drawn["set_xticks"][0][0] == (range(2), ["one", "two"])


def test_the_same_figure_is_the_same_file(tmp_path):
    for name in ("a.png", "b.png"):
        curves({"seen": [(1, 0.5), (2, 0.7)]}, tmp_path / name, across="N", up="share")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
