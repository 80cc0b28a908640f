"""Plots as PNG files: lines and bars with optional intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Points = Sequence[tuple[float, ...]]  # (x, y), or (x, y, low, high) with an interval
Bars = Mapping[str, tuple[float, float, float]]  # name: (value, low, high)


def plot_lines(
    lines: Mapping[str, Points],
    path: Path,
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    log_x: bool = False,
) -> None:
    """Plots one line per name. Intervals are shaded.

    Args:
        lines: points of each line, by its name in the legend.
        path: PNG file to write; its folder is created.
        log_x: uses a logarithmic x-axis with base 2.
    """
    figure, axes = _new_axes(title)
    for name, points in lines.items():
        x, y, *interval = zip(*points, strict=True)
        (line,) = axes.plot(x, y, marker="o", markersize=4, label=name)
        if interval:
            axes.fill_between(x, *interval, color=line.get_color(), alpha=0.2, linewidth=0)
    if log_x:
        axes.set_xscale("log", base=2)
        ticks = sorted({point[0] for points in lines.values() for point in points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _save(figure, axes, path)


def plot_bars(groups: Mapping[str, Bars], path: Path, *, y_label: str, title: str = "") -> None:
    """Plots grouped bars with their intervals.

    Bars with the same name in several groups stand side by side.

    Args:
        groups: bars of each group, by the group's name in the legend.
        path: PNG file to write; its folder is created.
    """
    figure, axes = _new_axes(title)
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    width = 0.8 / len(groups)
    for i, (label, group) in enumerate(groups.items()):
        x = [names.index(name) + (i - (len(groups) - 1) / 2) * width for name in group]
        values, lows, highs = zip(*group.values(), strict=True)
        errors = [
            [value - low for value, low in zip(values, lows, strict=True)],
            [high - value for value, high in zip(values, highs, strict=True)],
        ]
        axes.bar(x, values, 0.9 * width, yerr=errors, capsize=3, label=label)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel(y_label)
    _save(figure, axes, path)


def _new_axes(title: str) -> tuple[Any, Any]:
    # Not pyplot, which needs a display backend. Imported here because it takes a second.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Any, axes: Any, path: Path) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside the plot, so it hides nothing
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without matplotlib's version in the metadata, equal plots are equal files.
    figure.savefig(path, dpi=120, metadata={"Software": None})
