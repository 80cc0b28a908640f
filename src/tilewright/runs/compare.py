"""Comparison of runs: the settings that differ, the consequences, and the metrics."""

import shlex
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich import box
from rich.table import Table

from tilewright import program, runs
from tilewright.checks import is_number
from tilewright.errors import UserError
from tilewright.runs import listing
from tilewright.runs.listing import ABSENT, Record, metric

NOT_COMPARED = {"run", "run_name", "resume", "overrides", "paths", "format"}
PLACEHOLDER = Path("RUN")  # replaces each run's own path, which always differs
# Settings in the definition of a metric. Values of runs in which they differ do not compare.
DEFINITIONS = {
    "validation/reconstruction": ("likelihood",),
    "validation/loss": (
        *("likelihood", "loss.perceptual", "model.beta", "model.network.quantizer._target_"),
        *("model.network.stream", "dvae"),
    ),
}

Rows = dict[str, list[Any]]  # name -> one value for each run, None where a run has none


def print_comparison(records: list[Record]) -> None:
    """Prints what differs between runs of one stage.

    Raises:
        UserError: fewer than two runs, or runs of several stages.
    """
    _check_comparable(records)
    settings, consequences = differing_settings(records)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    for record in records:
        table.add_column(record.name, overflow="fold")
    has_change = len(records) == 2
    if has_change:
        table.add_column("change", justify="right")

    def add(title: list[str], rows: Rows, with_change: bool) -> None:
        if rows:
            table.add_section()
            table.add_row(*title, style="bold")
        for name, values in rows.items():
            shows_change = has_change and with_change and not _redefining_settings(name, records)
            change = [_change(*values)] if shows_change else []
            table.add_row(f"  {name}", *map(_format, values), *change)

    add(["settings that differ"], settings, with_change=False)
    add(["consequences, or changes of the code"], consequences, with_change=False)
    add(["code and machine"], differing_environments(records), with_change=True)
    add(_title_of_metrics(records), training_metrics(records), with_change=True)
    add(["evaluations"], evaluation_metrics(records), with_change=True)
    console = listing.console()
    console.print(table)
    for line in conclusion(records, settings):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _check_comparable(records: list[Record]) -> None:
    stages = list(dict.fromkeys(record.stage for record in records))
    if len(stages) > 1:
        raise UserError(
            f"compare= has runs of stage={' and stage='.join(stages)}: name runs of one stage"
        )


def _title_of_metrics(records: list[Record]) -> list[str]:
    """Returns the cells of a title that names the validation of the metrics of each run."""
    validations = [record.validation for record in records]
    if len(set(validations)) == 1:
        return [f"metrics at {validations[0]}"]
    return ["metrics at", *validations]


def differing_settings(records: list[Record]) -> tuple[Rows, Rows]:
    """Returns the differing keys: those set on a command line, and keys that follow from them.

    A key was set if a command line names it, a branch above it, or an option of its group. Changed
    code can also be the cause of another differing key.
    """
    flat = [_flatten(record) for record in records]
    groups = {group for record in records for group in record.config.get("choices", {})}
    set_keys = {key for record in records for key in _overrides(record)} - groups

    def was_set(key: str) -> bool:
        return key.startswith("choices.") or any(_is_part(key, name) for name in set_keys)

    settings, consequences = Rows(), Rows()
    for key, values in sorted(_differing(flat).items()):
        rows = settings if was_set(key) else consequences
        rows[key.removeprefix("choices.")] = values
    return settings, consequences


def _is_part(key: str, branch: str) -> bool:
    """Returns True for a key that is a branch or below it."""
    return key == branch or key.startswith(f"{branch}.")


def _redefining_settings(name: str, records: list[Record]) -> list[str]:
    """Returns the settings in the definition of a metric in which runs differ."""
    if name not in DEFINITIONS:
        return []
    differing = _differing([_flatten(record) for record in records])
    return [
        setting for setting in DEFINITIONS[name] if any(_is_part(key, setting) for key in differing)
    ]


def _flatten(record: Record) -> dict[str, Any]:
    """Returns the leaves of a configuration by their full keys, without the run's identity."""
    config = runs.relocate(record.config, PLACEHOLDER)
    leaves: dict[str, Any] = {}

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict) and value:
            for name, item in value.items():
                walk(item, f"{key}.{name}" if key else str(name))
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            for index, item in enumerate(value):
                walk(item, f"{key}.{index}")
        else:
            leaves[key] = value

    walk(OmegaConf.to_container(config), "")
    if record.config.get("dvae"):
        leaves["dvae"] = Path(record.config.dvae).name
    return {
        key: value for key, value in leaves.items() if key.partition(".")[0] not in NOT_COMPARED
    }


def differing_environments(records: list[Record]) -> Rows:
    """Returns the differences in commit, versions and machine, from each run's last entry."""
    columns = []
    for record in records:
        last = record.environments[-1] if record.environments else {}
        machine, packages = last.get("machine", {}), last.get("packages", {})
        values = {"commit": record.commit, "python": last.get("python"), **machine, **packages}
        columns.append({k: v for k, v in values.items() if v not in (None, [], ABSENT)})
    return _differing(columns)


def training_metrics(records: list[Record]) -> Rows:
    """Returns the metrics at each run's `validation`, its step, and the speed."""
    columns = []
    for record in records:
        row = record.validation_row()
        values = _validation_metrics(record, row) if row else {}
        speeds = [metric(row, "speed/images_per_second") for row in record.rows]
        speeds = [speed for speed in speeds if speed == speed]  # without NaN
        if speeds:
            values["speed/images_per_second"] = statistics.median_high(speeds)
        if row:
            values["at step"] = int(row["step"])
        columns.append(values)
    return _align(columns)


def _validation_metrics(record: Record, chosen: dict[str, str]) -> dict[str, Any]:
    """Returns the metrics of a row of metrics.csv.

    A metric of every few validations, which the row may lack, comes from the newest earlier row
    that has it, with its step.
    """
    newest: dict[str, tuple[float, int]] = {}
    for row in record.rows[: record.rows.index(chosen) + 1]:
        if row.get(record.monitor):  # a validation
            newest |= {
                name: (metric(row, name), int(row["step"]))
                for name, text in row.items()
                if text and "/" in name and not name.startswith(("train/", "schedule/"))
            }
    values: dict[str, Any] = {}
    for name, (value, step) in newest.items():
        values[name] = value
        if step != int(chosen["step"]):
            values[f"{name} at step"] = step
    return values


def evaluation_metrics(records: list[Record]) -> Rows:
    """Returns the metrics of evaluations that at least two of the runs have.

    The settings in which a run's own values of a metric differ are part of the name. Values of
    several runs that were measured with different settings are text with these settings.
    """
    keys: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for name, differing in listing.differing_keys(record.results).items():
            keys[name] |= differing
    columns: list[dict[str, Any]] = []
    for record in records:
        names = [listing.result_name(row) for row in record.results]
        columns.append(
            {
                "/".join([name, *listing.settings_text(row, keys[name])]): row
                for name, row in zip(names, record.results, strict=True)
            }
        )
    return {
        name: _values(results)
        for name, results in _align(columns).items()
        if len(results) - results.count(None) > 1
    }


def _values(results: list[dict[str, Any] | None]) -> list[Any]:
    """Returns the values of a metric, as text with the settings in which they differ, if any."""
    (keys,) = listing.differing_keys(filter(None, results)).values()
    keys -= {"requested_images"}  # the measured ones, `images`, are those that count

    def value(row: dict[str, Any]) -> float | str:
        number = float(row["value"])
        settings = " ".join(listing.settings_text(row, keys))
        return f"{_format(number)} ({settings})" if settings else number

    return [row and value(row) for row in results]


def _align(columns: list[dict[str, Any]]) -> Rows:
    names = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name) for column in columns] for name in names}


def _differing(columns: list[dict[str, Any]]) -> Rows:
    rows = _align(columns)
    return {k: values for k, values in rows.items() if any(v != values[0] for v in values)}


def conclusion(records: list[Record], settings: Rows) -> list[str]:
    """Returns lines that name the better run, and the settings that can explain it.

    No run is better by a metric that does not select the weights of all of them, or that has
    another meaning for some of them.
    """
    rows = [(record, record.validation_row()) for record in records]
    monitor = " or ".join(dict.fromkeys(record.monitor for record in records))
    scored = [(metric(row, record.monitor), record) for record, row in rows if row]
    if len(scored) < 2:
        return [f"Not all of these runs have a {monitor} yet"]
    if reason := _obstacle(records):
        before, after = records[0], records[-1]
        lines = [reason]
    else:
        scored.sort(key=lambda pair: pair[0], reverse=records[0].lower_is_better)
        (low, before), (high, after) = scored[0], scored[-1]
        if low == high:
            return [f"They have the same {monitor}"]
        scores = f"{high:.4g}, and {before.name} has {low:.4g}"
        lines = [f"{after.name} has the best {monitor}: {scores}"]
    keys = list(settings)
    if not keys:
        lines.append("No setting differs: the cause is code, machine or chance")
    elif len(keys) == 1:
        lines.append(f"One setting differs: {keys[0]}")
    else:
        lines.append(f"{len(keys)} settings differ: {', '.join(keys)}. To test them one at a time:")
        train = program.invocation("train")
        lines += [f"  {train} {arguments}" for arguments in _change_one_setting(before, after)]
    if len({record.commit for record in records}) > 1:
        lines.append("They were trained by different code")
    return lines


def _obstacle(records: list[Record]) -> str | None:
    """Returns a line that says why the monitored metrics do not compare, None if they do."""
    monitors = list(dict.fromkeys(record.monitor for record in records))
    if len(monitors) > 1:
        return f"No run is better, because they monitor {' and '.join(monitors)}"
    unselected = [record.name for record in records if not record.selects_best]
    if unselected:
        names = ", ".join(unselected)
        return f"No run is better by {monitors[0]}, which does not select the weights of {names}"
    settings = _redefining_settings(monitors[0], records)
    if settings:
        names = ", ".join(settings)
        return f"No run is better by {monitors[0]}, which depends on {names}"
    return None


def _change_one_setting(before: Record, after: Record) -> list[str]:
    """Returns command lines that each change one setting of `before` to that of `after`."""
    old, new = _overrides(before), _overrides(after)
    lines = []
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) != new.get(key):
            mixed = {**old, key: new.get(key)}
            lines.append(shlex.join(text for text in mixed.values() if text is not None))
    return lines


def _overrides(record: Record) -> dict[str, str]:
    """Returns the command-line overrides of a run by their keys."""
    return {runs.override_key(text): text for text in record.config.get("overrides", [])}


def _format(value: Any) -> str:
    if value is None:
        return ABSENT
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _change(before: Any, after: Any) -> str:
    """Returns the relative change of a positive number, in percent.

    Others, such as a log-density below 0, have no zero to compare with.
    """
    if not all(is_number(x, 0) and x for x in (before, after)) or before == after:
        return ""
    return f"{(after - before) / before:+z.1%}"
