"""Lists trained runs, or compares some of them: `python src/runs.py compare=A compare=B`."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tilewright import program
from tilewright.cli import app, settings
from tilewright.errors import UserError
from tilewright.runs import compare, listing


@app.command("runs")
def main(config: DictConfig) -> None:
    """Prints a table of runs, or a comparison."""
    chosen = settings.choices()  # both filters are config groups
    stage, data, logs = chosen.get("stage"), chosen.get("data"), Path(config.paths.logs)
    if config.compare:
        names: Any = OmegaConf.to_container(config.compare, resolve=True)
        if len(names) < 2:
            raise UserError(
                f"compare={names[0]} is only one run: repeat the key, compare=A compare=B"
            )
        compare.print_comparison([listing.find_record(logs, name, stage) for name in names])
    else:
        list_runs(logs, stage, data)


def list_runs(logs: Path, stage: str | None, data: str | None) -> None:
    """Prints a table of the runs of a stage on a dataset."""
    records = listing.records(logs, stage, data)
    if not records:
        raise UserError(
            f"{logs} has no run{f' of stage={stage}' if stage else ''}"
            f"{f' on data={data}' if data else ''}: train one with "
            f"`{program.invocation('train')} stage=dvae`"
        )
    listing.print_table(records)
