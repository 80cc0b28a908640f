"""Runs side by side: the settings that differ, what follows from them, and the figures."""

import shlex
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich import box
from rich.table import Table

from tilewright import program, runs
from tilewright.errors import UserError
from tilewright.runs import listing
from tilewright.runs.listing import ABSENT, Record, figure

# Which run it is, and where it lies: no settings.
IDENTITY = {"run", "run_name", "resume", "overrides", "paths"}
PLACE = Path("RUN")

Rows = dict[str, list[Any]]  # of a name the value in each run, None where a run has none


def show(records: list[Record]) -> None:
    """Prints what differs between runs of one stage.

    Raises:
        UserError: fewer than two runs, or runs of several stages.
    """
    stages = list(dict.fromkeys(record.stage for record in records))
    if len(records) < 2 or len(stages) > 1:
        said = f"of stage={' and stage='.join(stages)}" if len(stages) > 1 else "only one"
        raise UserError(f"compare needs two runs or more of one stage, and these are {said}")
    given, follows = settings(records)
    sections = {
        "settings that differ": given,
        "what follows from them, or from other code": follows,
        "code and machine": surroundings(records),
        f"figures at the best {records[0].monitor}": training_figures(records),
        "evaluations": evaluation_figures(records),
    }
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    for record in records:
        table.add_column(record.name, overflow="fold")
    if len(records) == 2:
        table.add_column("change", justify="right")
    for title, rows in sections.items():
        if rows:
            table.add_section()
            table.add_row(f"[bold]{title}[/bold]")
        for name, values in rows.items():
            figures = rows is not given and rows is not follows
            change = [_change(*values)] if len(records) == 2 and figures else []
            table.add_row(f"  {name}", *map(_shown, values), *change)
    console = listing.console()
    console.print(table)
    for line in verdict(records, given):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def settings(records: list[Record]) -> tuple[Rows, Rows]:
    """What differs between the configurations: what was set, and what follows or is other code's.

    A key was set where one of the command lines names it, or an option of a group.
    """
    flat = [_flat(record) for record in records]
    groups = {group for record in records for group in record.config.get("choices", {})}
    named = {key for record in records for key in _overrides(record)} - groups
    # A setting may be a whole branch, as data.source={...}; then its leaves are settings.
    given, follows = Rows(), Rows()
    for key in sorted(set().union(*flat)):
        values = [one.get(key) for one in flat]
        if all(value == values[0] for value in values):
            continue
        is_set = key.startswith("choices.") or any(
            key == name or key.startswith(f"{name}.") for name in named
        )
        (given if is_set else follows)[key.removeprefix("choices.")] = values
    return given, follows


def _flat(record: Record) -> dict[str, Any]:
    """A configuration's leaves by their full keys, without what only says which run it is."""
    config = runs.moved(record.config, PLACE)
    leaves: dict[str, Any] = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict) and value:
            for name, item in value.items():
                walk(item, f"{key}.{name}" if key else str(name))
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for number, item in enumerate(value):
                walk(item, f"{key}.{number}")
        else:
            leaves[key] = value

    walk(OmegaConf.to_container(config), "")
    if record.config.get("dvae"):
        leaves["dvae"] = Path(record.config.dvae).name
    return {key: value for key, value in leaves.items() if key.partition(".")[0] not in IDENTITY}


def surroundings(records: list[Record]) -> Rows:
    """What differs in commit, versions and machine, as the last entry of each run has it."""
    found = []
    for record in records:
        last = record.made[-1] if record.made else {}
        machine, packages = last.get("machine", {}), last.get("packages", {})
        kept = {"commit": record.commit, "python": last.get("python"), **machine, **packages}
        found.append({key: value for key, value in kept.items() if value not in (None, [], ABSENT)})
    return _differing(found)


def training_figures(records: list[Record]) -> Rows:
    """The validation's figures where the monitored one was best, and how long that took."""
    found = []
    for record in records:
        best = record.best() or {}
        names = [name for name, value in best.items() if value and "/" in name]
        own = {name: figure(best, name) for name in names if not name.startswith("train/")}
        own = {name: value for name, value in own.items() if not name.startswith("schedule/")}
        speeds = [figure(row, "speed/images_per_second") for row in record.rows]
        speeds = sorted(speed for speed in speeds if speed == speed)
        if speeds:
            own["speed/images_per_second"] = speeds[len(speeds) // 2]
        if best:
            own["at step"] = int(best["step"]) + 1
        found.append(own)
    return _aligned(found)


def evaluation_figures(records: list[Record]) -> Rows:
    """Figures of the evaluations that at least two of the runs have."""
    found: list[dict[str, Any]] = []
    for record in records:
        own = {}
        for row in record.results:
            parts = [row["evaluation"], row["metric"], row["split"]]
            parts += [str(row[key]) for key in ("category", "best_of", "blur") if key in row]
            own["/".join(dict.fromkeys(parts))] = float(row["value"])
        found.append(own)
    return {name: v for name, v in _aligned(found).items() if sum(x is not None for x in v) > 1}


def _aligned(found: list[dict[str, Any]]) -> Rows:
    names = dict.fromkeys(name for one in found for name in one)
    return {name: [one.get(name) for one in found] for name in names}


def _differing(found: list[dict[str, Any]]) -> Rows:
    return {k: v for k, v in _aligned(found).items() if any(value != v[0] for value in v)}


def verdict(records: list[Record], given: Rows) -> list[str]:
    """Which run is the better one by its monitored figure, and what that can be due to."""
    reached = [(record, record.best()) for record in records]
    monitor = records[0].monitor
    scored = [(figure(best, monitor), record) for record, best in reached if best]
    if len(scored) < 2:
        return [f"Not all of these runs have a {monitor} yet"]
    worst_first = sorted(scored, key=lambda pair: pair[0], reverse=records[0].lower_is_better)
    (low, worst), (high, best) = worst_first[0], worst_first[-1]
    if low == high:
        return [f"They have the same {monitor}"]
    lines = [f"{best.name} has the best {monitor}: {high:.4g}, and {worst.name} {low:.4g}"]
    keys = list(given)
    if not keys:
        lines.append("No setting was given to one alone: what differs is code, machine or chance")
    elif len(keys) == 1:
        lines.append(f"One setting differs: {keys[0]}")
    else:
        lines.append(f"{len(keys)} settings differ: {', '.join(keys)}. To see which counts:")
        lines += [
            f"  {program.invocation('train')} {words}" for words in _one_at_a_time(worst, best)
        ]
    if len({record.commit for record in records}) > 1:
        lines.append("They were trained by different code")
    return lines


def _one_at_a_time(before: Record, after: Record) -> list[str]:
    """Command lines that each take one setting of `after` into those of `before`."""
    old, new = _overrides(before), _overrides(after)
    lines = []
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) != new.get(key):
            mixed = {**old, key: new.get(key)}
            lines.append(shlex.join(text for text in mixed.values() if text is not None))
    return lines


def _overrides(record: Record) -> dict[str, str]:
    """The settings of a run's command lines by their keys."""
    return {runs.key_of(text): text for text in record.config.get("overrides", [])}


def _shown(value: Any) -> str:
    if value is None:
        return ABSENT
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _change(before: Any, after: Any) -> str:
    """By how much a number has grown, in per cent."""
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (before, after))
    if not numbers or not before or before == after:
        return ""
    return f"{(after - before) / abs(before):+z.1%}"
