"""Results of evaluations: in results.json, as a printed table, and in TensorBoard."""

import json
import logging
import math
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from rich import box
from rich.table import Table

from tilewright.data import CaptionedImages
from tilewright.errors import first_line
from tilewright.files import write_atomically
from tilewright.runs import listing

logger = logging.getLogger(__name__)

# Keys that every record of results.json has, even if a metric does not use them.
OPTIONAL_KEYS = ("extractor", "extractor_digest", "resize")
RESULTS = "results.json"


@dataclass(frozen=True)
class Result:
    """A measured value with the settings that reproduce it.

    Args:
        metric: name of the metric.
        value: measured value.
        split: split of the data.
        images: number of images that were measured.
        settings: everything else that changes the value (extractor, resize, sampling, ...). A list
            is a spread around the value, such as a confidence interval.
    """

    metric: str
    value: float
    split: str
    images: int
    settings: dict[str, Any]


class Evaluation(Protocol):
    """Interface of the classes that `conf/metric/<name>.yaml` builds."""

    def __call__(
        self, run: Path, data: CaptionedImages, *, seed: int, device: str, folder: Path
    ) -> list[Result]:
        """Measures a run and returns the results.

        Args:
            run: folder of the run.
            data: data to measure on.
            seed: seed of everything random.
            device: torch device.
            folder: folder for images and plots of the evaluation.
        """
        ...


def write_results(results: list[Result], folder: Path, **common: Any) -> Path:
    """Adds results to `results.json`, one flat record per result, and returns its path.

    Earlier records stay, unless a new one has the same settings.

    Args:
        common: keys of every record, such as run, data and seed.
    """
    records = []
    for result in results:
        record = asdict(result)
        settings = record.pop("settings")
        if not math.isfinite(record["value"]):
            logger.warning("%s on %s is %s", result.metric, result.split, record["value"])
            record["value"] = str(record["value"])  # JSON has no infinity
        records.append({**record, **dict.fromkeys(OPTIONAL_KEYS), **settings, **common})
    records = json.loads(json.dumps(records))  # as they will be read
    replaced = [_identity(record) for record in records]
    path = folder / RESULTS
    kept = [old for old in _read_records(path) if _identity(old) not in replaced]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps([*kept, *records], indent=2) + "\n")
    return path


def _read_records(path: Path) -> list[dict[str, Any]]:
    try:
        records = json.loads(path.read_text()) if path.is_file() else []
        return [record for record in records if isinstance(record, dict)]
    except ValueError as error:
        logger.warning("%s cannot be read and is replaced: %s", path, first_line(error))
        return []


def _identity(record: dict[str, Any]) -> dict[str, Any]:
    """Returns the keys of a record that identify its measurement."""
    changing = {"value", "run"}  # a run may move; lists are spreads
    return {k: v for k, v in record.items() if k not in changing and not isinstance(v, list)}


def replace_images(images: Path, folder: Path) -> None:
    """Replaces the files of a folder, except the records, with those of another folder.

    Args:
        images: folder of the new files, on the same disk. It is emptied.
        folder: folder of an earlier evaluation. It is created if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.is_dir() and not old.is_symlink():
            shutil.rmtree(old)
        elif old.name != RESULTS:
            old.unlink()
    for new in images.iterdir():
        new.replace(folder / new.name)


def print_results(results: list[Result], title: str) -> None:
    """Prints a table of results; the settings that all of them share go below it."""
    spreads = [key for r in results for key, value in r.settings.items() if isinstance(value, list)]
    columns = list(dict.fromkeys([*_distinguishing_keys(results), *spreads]))
    shared = {k: v for r in results for k, v in r.settings.items() if k not in columns}
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("metric", "value", "split", "images", *columns):
        table.add_column(column, justify="right" if column in {"value", "images"} else "left")
    for r in results:
        settings = [r.settings.get(column) for column in columns]
        cells = ["" if setting is None else str(setting) for setting in settings]
        table.add_row(r.metric, f"{r.value:.4g}", r.split, str(r.images), *cells)
    console = listing.console()
    console.print(title, soft_wrap=True)
    console.print(table)
    if caption := ", ".join(f"{k}={v}" for k, v in shared.items() if v is not None):
        console.print(caption, soft_wrap=True)


def log_results(results: list[Result], run: Path, step: int) -> None:
    """Writes the TensorBoard scalars `eval/<metric>/<split>` beside the run's training curves.

    Args:
        step: training step of the measured weights.
    """
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(run), filename_suffix=".eval") as writer:
        for result in results:
            same_name = [r for r in results if (r.metric, r.split) == (result.metric, result.split)]
            settings = [f"{k}={result.settings.get(k)}" for k in _distinguishing_keys(same_name)]
            tag = "/".join(["eval", result.metric, result.split, *settings])
            writer.add_scalar(tag.replace(" ", "_"), result.value, step)


def _distinguishing_keys(results: Sequence[Result]) -> list[str]:
    """Returns the settings, except spreads, in which results of one metric and split differ."""
    values = defaultdict(set)
    for result in results:
        for key, value in result.settings.items():
            if not isinstance(value, list):
                values[key, result.metric, result.split].add(value)
    return list(dict.fromkeys(key for (key, *_), distinct in values.items() if len(distinct) > 1))
