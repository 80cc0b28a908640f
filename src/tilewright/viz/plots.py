"""Figures as PNG: curves and bars, with intervals where there are any."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Points = Sequence[tuple[float, ...]]  # (x, y), or with an interval (x, y, low, high)
Bars = Mapping[str, tuple[float, float, float]]  # by name: value, low, high


def curves(
    lines: Mapping[str, Points],
    path: Path,
    *,
    across: str,
    up: str,
    title: str = "",
    log_x: bool = False,
) -> None:
    """A curve for each name, from left to right; an interval is a shade around it.

    Args:
        across, up: what the axes are.
        log_x: equal factors at equal distances, to base 2.
    """
    figure, axes = _axes(title)
    for name, points in lines.items():
        x, y, *interval = zip(*points, strict=True)
        (line,) = axes.plot(x, y, marker="o", markersize=4, label=name)
        if interval:
            axes.fill_between(x, *interval, color=line.get_color(), alpha=0.2, linewidth=0)
    if log_x:
        axes.set_xscale("log", base=2)
        ticks = sorted({point[0] for points in lines.values() for point in points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    _write(figure, axes, path)


def bars(groups: Mapping[str, Bars], path: Path, *, up: str, title: str = "") -> None:
    """Bars side by side for the names of each group, with their intervals.

    Args:
        groups: by the name that the legend has; the bars' own names stand below them.
        up: what the vertical axis is.
    """
    figure, axes = _axes(title)
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    width = 0.8 / len(groups)
    for number, (label, group) in enumerate(groups.items()):
        places = [names.index(name) + (number - (len(groups) - 1) / 2) * width for name in group]
        values, low, high = zip(*group.values(), strict=True)
        reach = [
            [value - least for value, least in zip(values, low, strict=True)],
            [most - value for value, most in zip(values, high, strict=True)],
        ]
        axes.bar(places, values, 0.9 * width, yerr=reach, capsize=3, label=label)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel(up)
    _write(figure, axes, path)


def _axes(title: str) -> tuple[Any, Any]:
    # A figure by itself: pyplot would look for a screen. Imported late, for it takes a second.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def _write(figure: Any, axes: Any, path: Path) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside the curves, never over them
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of the library, equal figures are equal files.
    figure.savefig(path, dpi=120, metadata={"Software": None})
