"""A figure of curves, drawn with what is installed anyway."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

WIDTH, HEIGHT, MARGIN = 640, 360, 48
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2", "#7f7f7f")


def draw_curves(
    title: str, across: str, curves: Mapping[str, Sequence[tuple[float, float]]], path: str | Path
) -> None:
    """Curves of shares between 0 and 1, each with its name beside it.

    Args:
        across: what the horizontal axis is.
        curves: points by name, from left to right.
    """
    image = Image.new("RGB", (WIDTH, HEIGHT + 16 * len(curves)), "white")
    pen = ImageDraw.Draw(image)
    furthest = max(x for points in curves.values() for x, _ in points)
    highest = max(0.1, max(y for points in curves.values() for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        right, up = x / furthest, y / highest
        return MARGIN + right * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    pen.text((MARGIN, 12), title, fill="black")
    for step in range(5):
        y = highest * step / 4
        pen.line([place(0, y), place(furthest, y)], fill="#dddddd")
        pen.text((8, place(0, y)[1] - 6), f"{y:.2f}", fill="black")
        x = furthest * step / 4
        pen.text((place(x, 0)[0] - 8, HEIGHT - MARGIN + 6), f"{x:.2g}", fill="black")
    pen.text((WIDTH - MARGIN - 60, HEIGHT - MARGIN + 22), across, fill="black")
    for number, (name, points) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        pen.line([place(*point) for point in [(0.0, 0.0), *points]], fill=colour, width=2)
        for point in points:
            x, y = place(*point)
            pen.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
        pen.text((MARGIN, HEIGHT - 8 + 16 * number), f"--  {name}", fill=colour)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    print(f"The curves are in {path}")
