"""Table of the runs of a folder, read from their files."""

import contextlib
import csv
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from tilewright import program, runs
from tilewright.checks import format_value
from tilewright.errors import UserError, first_line
from tilewright.runs import environment

ABSENT = "-"
PIPE_WIDTH = 160  # columns of a table in a file or a pipe


@dataclass(frozen=True)
class Record:
    """Content of a run's files.

    Args:
        path: the run's folder.
        name: `stage/name`.
        config: the resolved configuration.
        rows: of metrics.csv, as text.
        results: rows of all results.json files on the run's weights, each with the name of its
            `evaluation`.
        num_earlier_results: number of rows on earlier weights, which `results` leaves out.
        environments: entries of environment.json, the oldest first.
        modified: time of the last change of metrics or checkpoints, in seconds since the epoch.
    """

    path: Path
    name: str
    config: DictConfig
    rows: list[dict[str, str]]
    results: list[dict[str, Any]]
    num_earlier_results: int
    environments: list[dict[str, Any]]
    modified: float

    @property
    def stage(self) -> str:
        """Stage of the run: dvae, prior or ranker."""
        return self.config.stage

    @property
    def data(self) -> str:
        """Name of the dataset."""
        return str(OmegaConf.select(self.config, "choices.data", default=ABSENT))

    @property
    def steps(self) -> int:
        """Number of updates, from the last checkpoint or from a later row of metrics.csv."""
        steps = [int(row["step"]) for row in self.rows if row.get("step")]
        with contextlib.suppress(UserError):  # there is no checkpoint yet
            steps.append(runs.trained_steps(self.path, "last"))
        return max(steps, default=0)

    @property
    def commit(self) -> str:
        """First 7 digits of the last commit that trained the run, with "+" for changed code."""
        if not self.environments or not self.environments[-1].get("commit"):
            return ABSENT
        last = self.environments[-1]
        return str(last["commit"])[:7] + ("+" if last.get("dirty") else "")

    @property
    def monitor(self) -> str:
        """Name of the metric that selects the best checkpoint."""
        return str(OmegaConf.select(self.config, "monitor", default="validation/loss"))

    @property
    def lower_is_better(self) -> bool:
        """True if the best checkpoint has the lowest value of `monitor`."""
        return OmegaConf.select(self.config, "callbacks.best.mode", default="min") != "max"

    @property
    def selects_best(self) -> bool:
        """True if other commands use the weights with the best value of `monitor`."""
        return runs.selects_best(self.config)

    @property
    def validation(self) -> str:
        """Name of the validation whose weights other commands use."""
        return f"the best {self.monitor}" if self.selects_best else "the last validation"

    def validation_row(self) -> dict[str, str] | None:
        """Returns the row of `validation` in metrics.csv, None without a monitored value."""
        rows = [row for row in self.rows if math.isfinite(metric(row, self.monitor))]
        if not self.selects_best:
            return rows[-1] if rows else None
        pick = min if self.lower_is_better else max
        return pick(rows, key=lambda row: metric(row, self.monitor), default=None)


def metric(row: dict[str, str], name: str) -> float:
    """Returns a metric of a row of metrics.csv, NaN if the row does not have it."""
    return float(row.get(name) or "nan")


def read(run: Path) -> Record:
    """Reads a run's files.

    Raises:
        UserError: the folder is not a run, or one of its files cannot be read.
    """
    config = runs.load_config(run)
    run = run.resolve()
    try:
        rows, (results, num_earlier_results) = _read_metrics(run), _read_results(run)
    except (ValueError, TypeError, csv.Error) as error:  # a file that is not JSON or not of numbers
        raise UserError(f"{run} cannot be read: {first_line(error)}") from error
    return Record(
        path=run,
        name=f"{config.stage}/{run.name}",
        config=config,
        rows=rows,
        results=results,
        num_earlier_results=num_earlier_results,
        environments=environment.load(run),
        modified=_modification_time(run),
    )


def _read_metrics(run: Path) -> list[dict[str, str]]:
    if not (run / "metrics.csv").is_file():
        return []
    with (run / "metrics.csv").open() as table:
        rows = list(csv.DictReader(table, restkey="more values than columns"))
    for row in rows:
        int(row.get("step") or 0)
        for text in row.values():
            float(text or 0)
    return rows


def _read_results(run: Path) -> tuple[list[dict[str, Any]], int]:
    """Returns the results of the run's weights, and the number of those of earlier weights."""
    results: list[dict[str, Any]] = []
    for file in sorted(run.glob("eval/*/results.json")):
        rows = json.loads(file.read_text())
        if not isinstance(rows, list) or not all(map(_is_result, rows)):
            raise ValueError(f"{file} does not hold results")
        results += [{**row, "evaluation": file.parent.name} for row in rows]
    try:
        steps = runs.trained_steps(run)
    except UserError:  # there is no checkpoint: the newest weights that were measured
        steps = max((row.get("steps", 0) for row in results), default=0)
    current = [row for row in results if row.get("steps", steps) == steps]
    return current, len(results) - len(current)


def _is_result(row: Any) -> bool:
    """Returns True for a record with the keys that all results have."""
    if not isinstance(row, dict) or not {"metric", "value", "split"} <= row.keys():
        return False
    float(row["value"])  # "inf" is possible; other text is a ValueError
    return True


def _modification_time(run: Path) -> float:
    names = (runs.CONFIG, runs.MODEL_CONFIG, "metrics.csv")
    candidates = [*(run / name for name in names), *(run / "checkpoints").glob("*.ckpt")]
    return max(file.stat().st_mtime for file in candidates if file.is_file())


def records(logs: Path, stage: str | None = None, data: str | None = None) -> list[Record]:
    """Returns the runs of a folder, the last modified first.

    Runs that cannot be read are skipped with a warning.

    Args:
        logs: folder of all runs.
        stage: None for all stages.
        data: name of a dataset; None for all.
    """
    selected = []
    for folder in sorted(logs.glob(f"{stage or '*'}/*/")):
        if folder.name != runs.LATEST and (folder / runs.CONFIG).is_file():
            with runs.skip_unreadable(folder):
                record = read(folder)
                if data in {None, record.data}:
                    selected.append(record)
    return sorted(selected, key=lambda record: record.modified, reverse=True)


def find_record(logs: Path, name: str, stage: str | None = None) -> Record:
    """Returns the run with a path, a name, or `stage/name`.

    Raises:
        UserError: no run, or more than one, has that name.
    """
    stages = [stage] if stage else sorted(path.name for path in logs.glob("*/"))
    places = [Path(name), logs / name, *(logs / folder / name for folder in stages)]
    folders = map(runs.follow_latest, places)
    matches = list(dict.fromkeys(p.resolve() for p in folders if (p / runs.CONFIG).is_file()))
    if not matches:
        raise UserError(
            f"there is no run {name} in {logs}: `{program.invocation('runs')}` lists them"
        )
    if len(matches) > 1:
        names = ", ".join(f"{path.parent.name}/{path.name}" for path in matches)
        raise UserError(f"{name} is the name of several runs: use one of {names}")
    return read(matches[0])


def evaluations(record: Record) -> list[str]:
    """Returns a line for each evaluation on the run's own data.

    It has the values of the validation split, or of the other splits by their names. The values of
    a metric for several categories of captions become a range.
    """
    own = [row for row in record.results if _is_own(row, record)]
    differing = differing_keys(own)
    lines = []
    for evaluation in dict.fromkeys(row["evaluation"] for row in own):
        rows = [row for row in own if row["evaluation"] == evaluation]
        validation = [row for row in rows if row["split"] == "validation"]
        values: dict[str, list[float]] = defaultdict(list)
        for row in validation or rows:
            keys = differing[result_name(row)] | {key for key in row if key.startswith("data.")}
            parts = [row["metric"], *([] if validation else [row["split"]])]
            values["/".join([*parts, *settings_text(row, keys)])].append(float(row["value"]))
        text = ", ".join(f"{name} {_range(numbers)}" for name, numbers in values.items())
        is_named = any(row["metric"] == evaluation for row in rows)
        lines.append(text if is_named else f"{evaluation}: {text}")
    return lines


def _is_own(row: dict[str, Any], record: Record) -> bool:
    """Returns True for a value on the run's own data that is not a reference for comparison."""
    is_reference = row.get("image_set") not in (None, "generated")
    return not is_reference and row.get("data") in (None, record.data)


def result_name(row: dict[str, Any]) -> str:
    """Returns the name of a value, which is unique among values with the same settings."""
    parts = (row["evaluation"], row["metric"], row["split"], row.get("category"))
    return "/".join(dict.fromkeys(str(part) for part in parts if part is not None))


def differing_keys(results: Iterable[dict[str, Any]]) -> dict[str, set[str]]:
    """Returns the settings in which results of the same name differ, by that name.

    The number of updates is not a setting, and a list is a spread around the value.
    """
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in results:
        settings = {key: value for key, value in row.items() if not isinstance(value, list)}
        by_name[result_name(row)].append(settings)
    return {
        name: {
            key
            for key in set().union(*rows) - {"value", "run", "steps"}
            if any(row.get(key) != rows[0].get(key) for row in rows)
        }
        for name, rows in by_name.items()
    }


def settings_text(row: dict[str, Any], keys: Iterable[str]) -> list[str]:
    """Returns KEY=VALUE of some settings of a result."""
    return [f"{key}={format_value(row.get(key))}" for key in sorted(keys)]


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low} to {high}"


def age(seconds: float) -> str:
    """Returns a duration in its largest unit: 5 min, 3 h, 12 d."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(int(seconds), 0)} s"


def console() -> Console:
    """Returns the console for tables, which prints names such as `a[r]` and `a:b:` as they are.

    In a file or a pipe it is wide, so that no row breaks.
    """
    default = Console(markup=False, emoji=False)
    if default.is_terminal or "COLUMNS" in os.environ:
        return default
    return Console(markup=False, emoji=False, width=PIPE_WIDTH)


def print_table(selected: list[Record]) -> None:
    """Prints a table of runs."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("run", "data", "steps", "metrics", "age", "commit"):
        justify: Any = "right" if column in {"steps", "age"} else "left"
        wraps = column in {"run", "metrics"}
        table.add_column(column, justify=justify, overflow="fold", no_wrap=not wraps)
    for record in selected:
        table.add_row(
            record.name,
            record.data,
            _progress(record),
            "\n".join([*_monitored_value(record), *evaluations(record)]) or ABSENT,
            age(time.time() - record.modified),
            record.commit,
        )
    console().print(table)


def _progress(record: Record) -> str:
    max_steps = OmegaConf.select(record.config, "trainer.max_steps")
    return str(record.steps) if record.steps == max_steps else f"{record.steps}/{max_steps}"


def _monitored_value(record: Record) -> list[str]:
    row = record.validation_row()
    if row is None:
        return []
    value = metric(row, record.monitor)
    return [f"{record.monitor} {value:.4g} at {row['step']}"]
