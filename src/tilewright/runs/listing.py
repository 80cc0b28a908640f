"""What the runs of a folder are and have reached, read from their files alone."""

import csv
import json
import math
import os
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

from tilewright import runs
from tilewright.errors import UserError
from tilewright.runs import environment

ABSENT = "-"


@dataclass(frozen=True)
class Record:
    """A run as its files tell it.

    Args:
        path: its folder; name: `stage/name`.
        config: its resolved configuration.
        rows: of its metrics.csv.
        results: of its evaluations, each a record of a results.json with `evaluation`, its name.
        made: the entries of its environment.json, the oldest first.
        written: when its figures or checkpoints last changed, in seconds since the epoch.
    """

    path: Path
    name: str
    config: DictConfig
    rows: list[dict[str, str]]
    results: list[dict[str, Any]]
    made: list[dict[str, Any]]
    written: float

    @property
    def stage(self) -> str:
        return self.config.stage

    @property
    def data(self) -> str:
        return str(OmegaConf.select(self.config, "choices.data", default=ABSENT))

    @property
    def steps(self) -> int:
        """Updates that are on record."""
        return max((int(row["step"]) + 1 for row in self.rows if row.get("step")), default=0)

    @property
    def commit(self) -> str:
        """Of the code that last trained it, seven digits, with a + where that was changed."""
        if not self.made or not self.made[-1].get("commit"):
            return ABSENT
        return self.made[-1]["commit"][:7] + ("+" if self.made[-1].get("dirty") else "")

    @property
    def monitor(self) -> str:
        """The figure that the best checkpoint has the best of."""
        return str(OmegaConf.select(self.config, "monitor", default="validation/loss"))

    @property
    def lower_is_better(self) -> bool:
        return OmegaConf.select(self.config, "callbacks.best.mode", default="min") != "max"

    def best(self) -> dict[str, str] | None:
        """The row of metrics.csv with the best monitored figure; None before the first one."""
        rows = [row for row in self.rows if math.isfinite(figure(row, self.monitor))]
        pick = min if self.lower_is_better else max
        return pick(rows, key=lambda row: figure(row, self.monitor), default=None)


def figure(row: dict[str, str], name: str) -> float:
    """A figure of a row of metrics.csv; not a number where the row has none."""
    return float(row.get(name) or "nan")


def read(run: Path) -> Record:
    """A run's record.

    Raises:
        UserError: the folder is no run, or its configuration cannot be read.
    """
    config = runs.load_config(run)
    run = run.resolve()
    results = []
    for file in sorted(run.glob("eval/*/results.json")):
        results += [{**row, "evaluation": file.parent.name} for row in json.loads(file.read_text())]
    rows = []
    if (run / "metrics.csv").is_file():
        with (run / "metrics.csv").open() as table:
            rows = list(csv.DictReader(table))
    signs = [
        run / runs.CONFIG,
        run / runs.MODEL,
        run / "metrics.csv",
        *(run / "checkpoints").glob("*.ckpt"),
    ]
    written = max(file.stat().st_mtime for file in signs if file.is_file())
    name = f"{config.stage}/{run.name}"
    return Record(run, name, config, rows, results, environment.load(run), written)


def records(logs: Path, stage: str | None = None, data: str | None = None) -> list[Record]:
    """All runs of a folder, those that were written to last first.

    Args:
        stage, data: only those of this stage, on this data set.
    """
    found = []
    for folder in sorted(logs.glob(f"{stage or '*'}/*/")):
        if folder.name != runs.LATEST and (folder / runs.CONFIG).is_file():
            record = read(folder)
            if data in {None, record.data}:
                found.append(record)
    return sorted(found, key=lambda record: record.written, reverse=True)


def find(logs: Path, wanted: str, stage: str | None = None) -> Record:
    """The run of a path or a name, with or without its stage before it.

    Raises:
        UserError: there is none, or there are several of that name.
    """
    stages = [stage] if stage else sorted(path.name for path in logs.glob("*/"))
    places = [Path(wanted), logs / wanted, *(logs / name / wanted for name in stages)]
    found = list(dict.fromkeys(p.resolve() for p in places if (p / runs.CONFIG).is_file()))
    if not found:
        raise UserError(f"there is no run {wanted} in {logs}: `python src/runs.py` lists them")
    if len(found) > 1:
        names = ", ".join(f"{path.parent.name}/{path.name}" for path in found)
        raise UserError(f"{wanted} is the name of several runs: say which, {names}")
    return read(found[0])


def evaluations(record: Record) -> list[str]:
    """A line for each evaluation, of the validation split where it has one.

    Several values of one figure, as of kinds of captions, are given as from the least to the most.
    """
    by_evaluation: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name in dict.fromkeys(row["evaluation"] for row in record.results):
        rows = [row for row in record.results if row["evaluation"] == name]
        seen = [row for row in rows if row["split"] == "validation"]
        for row in seen or rows:
            by_evaluation[name][row["metric"]].append(float(row["value"]))
    lines = []
    for name, values in by_evaluation.items():
        figures = [f"{metric} {_range(found)}" for metric, found in values.items()]
        named = any(metric == name for metric in values)
        lines.append(("" if named else f"{name}: ") + ", ".join(figures))
    return lines


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low} to {high}"


def age(seconds: float) -> str:
    """A duration in its largest unit: 5 min, 3 h, 12 d."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(int(seconds), 0)} s"


def console() -> Console:
    """Where tables are printed; into a file or a pipe they are wide enough not to be broken."""
    plain = Console()
    return plain if plain.is_terminal or "COLUMNS" in os.environ else Console(width=160)


def show(found: list[Record]) -> None:
    """Prints the table of runs."""
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("run", "data", "steps", "figures", "age", "commit"):
        justify: Any = "right" if column in {"steps", "age"} else "left"
        wraps = column in {"run", "figures"}
        table.add_column(column, justify=justify, overflow="fold", no_wrap=not wraps)
    for record in found:
        best = record.best()
        figures = evaluations(record)
        if best is not None:
            value = f"{figure(best, record.monitor):.4g}"
            figures.insert(0, f"{record.monitor} {value} at {int(best['step']) + 1}")
        most = OmegaConf.select(record.config, "trainer.max_steps")
        table.add_row(
            record.name,
            record.data,
            str(record.steps) if record.steps == most else f"{record.steps}/{most}",
            "\n".join(figures) or ABSENT,
            age(time.time() - record.written),
            record.commit,
        )
    console().print(table)
