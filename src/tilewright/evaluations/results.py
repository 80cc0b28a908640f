"""Figures with what is needed to repeat them: in results.json, on the screen, in TensorBoard."""

import json
import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from rich import box
from rich.table import Table

from tilewright.data import CaptionedImages
from tilewright.runs import listing


@dataclass(frozen=True)
class Result:
    """One figure.

    Args:
        metric: its name; value: the figure itself.
        split: of the data set.
        images: how many pictures went into it.
        settings: whatever else changes the value (extractor, resize, sampling, ...). What lies
            around the value, such as an interval, is a list: it tells no figure from another.
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
    absent = {"extractor": None, "extractor_digest": None, "resize": None}
    for result in results:
        row = asdict(result)
        settings = row.pop("settings")
        rows.append({**row, **absent, **settings, **common})
    for row in rows:
        if not math.isfinite(row["value"]):
            row["value"] = str(row["value"])  # JSON has no infinity
    path = folder / "results.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n")
    return path


def show(results: list[Result], title: str) -> None:
    """Prints a table under its title; settings that all figures share stand below it."""
    keys = _distinguishing(results)
    keys += [key for r in results for key, value in r.settings.items() if isinstance(value, list)]
    keys = list(dict.fromkeys(keys))
    shared = {key: value for r in results for key, value in r.settings.items() if key not in keys}
    caption = ", ".join(f"{key}={value}" for key, value in shared.items() if value is not None)
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("metric", "value", "split", "images", *keys):
        table.add_column(column, justify="right" if column in {"value", "images"} else "left")
    for r in results:
        own = [str(r.settings.get(key) if r.settings.get(key) is not None else "") for key in keys]
        table.add_row(r.metric, f"{r.value:.4g}", r.split, str(r.images), *own)
    console = listing.console()
    console.print(title, soft_wrap=True)
    console.print(table)
    if caption:
        console.print(caption, soft_wrap=True)


def log(results: list[Result], run: Path, step: int) -> None:
    """Writes TensorBoard scalars `eval/<metric>/<split>` into a run, beside its training's curves.

    Args:
        step: of the training at which the measured weights were made.
    """
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run), filename_suffix=".eval") as writer:
        for result in results:
            alike = [r for r in results if (r.metric, r.split) == (result.metric, result.split)]
            parts = [f"{key}={result.settings.get(key)}" for key in _distinguishing(alike)]
            tag = "/".join(["eval", result.metric, result.split, *parts])
            writer.add_scalar(tag.replace(" ", "_"), result.value, step)


def _distinguishing(results: list[Result]) -> list[str]:
    """The settings, lists aside, that tell figures of one metric and split from each other."""
    values = defaultdict(set)
    for result in results:
        for key, value in result.settings.items():
            if not isinstance(value, list):
                values[key, result.metric, result.split].add(value)
    return list(dict.fromkeys(key for (key, *_), differing in values.items() if len(differing) > 1))
