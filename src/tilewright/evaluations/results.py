"""Figures with all that is needed to repeat them: on the screen and in results.json."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

from tilewright.data import CaptionedImages


@dataclass(frozen=True)
class Result:
    """One figure.

    Args:
        metric: its name; value: the figure itself.
        split: of the data set.
        images: how many pictures went into it.
        settings: whatever else changes the value (extractor, resize, sampling, ...).
    """

    metric: str
    value: float
    split: str
    images: int
    settings: dict[str, Any]


class Evaluation(Protocol):
    """What `conf/metric/<name>.yaml` builds; that file names the kind of run that it measures."""

    def __call__(
        self, run: Path, data: CaptionedImages, *, seed: int, device: str, folder: Path
    ) -> list[Result]:
        """Measures a run. Pictures worth looking at are written into `folder`."""
        ...


def write(results: list[Result], folder: Path, **common: Any) -> Path:
    """Writes `results.json`: a flat record for each figure, its own settings and the common ones.

    Args:
        common: run, data, seed, ...
    """
    rows = []
    for result in results:
        row = asdict(result)
        settings = row.pop("settings")
        rows.append({**row, "extractor": None, "resize": None, **settings, **common})
    for row in rows:
        if not math.isfinite(row["value"]):
            row["value"] = str(row["value"])  # JSON has no infinity
    path = folder / "results.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n")
    return path


def show(results: list[Result], title: str) -> None:
    """Prints a table."""
    table = Table(title=title, title_justify="left")
    for column in ("metric", "value", "split", "images", "settings"):
        table.add_column(column, justify="right" if column in {"value", "images"} else "left")
    for result in results:
        settings = ", ".join(f"{k}={v}" for k, v in result.settings.items() if v is not None)
        table.add_row(
            result.metric, f"{result.value:.4g}", result.split, str(result.images), settings
        )
    Console().print(table)
