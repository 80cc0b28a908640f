"""Plots as PNG files."""

import pytest
from matplotlib.axes import Axes
from PIL import Image

from tilewright.viz.plots import plot_bars, plot_lines


@pytest.fixture
def axes_calls(monkeypatch):
    """Records calls of matplotlib's axes: {method: [(arguments, keyword arguments), ...]}."""
    calls = {"plot": [], "fill_between": [], "bar": [], "set_xticks": []}
    for name in calls:
        original = getattr(Axes, name)

        def recorded(self, *args, name=name, original=original, **kwargs):
            calls[name].append((args, kwargs))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Axes, name, recorded)
    return calls


def test_each_line_has_its_points_and_its_interval(axes_calls, tmp_path):
    lines = {"seen": [(1, 0.5), (2, 0.7)], "new": [(1, 0.2, 0.1, 0.3), (2, 0.3, 0.2, 0.4)]}
    path = tmp_path / "new" / "a.png"
    plot_lines(lines, path, x_label="N", y_label="accuracy", log_x=True)
    assert Image.open(path).size == (960, 480)
    assert [(x, y, kwargs["label"]) for (x, y), kwargs in axes_calls["plot"]] == [
        ((1, 2), (0.5, 0.7), "seen"),
        ((1, 2), (0.2, 0.3), "new"),
    ]
    (((x, low, high), _),) = axes_calls["fill_between"]
    assert (x, low, high) == ((1, 2), (0.1, 0.2), (0.3, 0.4))


def test_bars_of_one_name_stand_side_by_side_and_a_missing_bar_leaves_a_gap(axes_calls, tmp_path):
    groups = {
        "validation": {"one": (0.9, 0.8, 0.95), "two": (0.5, 0.4, 0.6)},
        "zeroshot": {"two": (0.2, 0.1, 0.4)},
    }
    plot_bars(groups, tmp_path / "a.png", y_label="accuracy")
    assert Image.open(tmp_path / "a.png").size == (960, 480)
    (validation, kwargs), (zeroshot, _) = axes_calls["bar"]
    assert kwargs["label"] == "validation"
    assert validation[0] == pytest.approx([-0.2, 0.8])
    assert zeroshot[0] == pytest.approx([1.2])
    assert validation[1] == (0.9, 0.5)
    assert kwargs["yerr"][0] == pytest.approx([0.1, 0.1])
    assert kwargs["yerr"][1] == pytest.approx([0.05, 0.1])
    assert axes_calls["set_xticks"][0][0] == (range(2), ["one", "two"])


def test_equal_plots_are_equal_files(tmp_path):
    for name in ("a.png", "b.png"):
        points = [(1, 0.5), (2, 0.7)]
        plot_lines({"seen": points}, tmp_path / name, x_label="N", y_label="accuracy")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
