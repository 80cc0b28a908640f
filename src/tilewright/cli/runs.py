"""Lists trained runs, or compares some of them: `python src/runs.py compare=[A,B]`."""

from pathlib import Path

from omegaconf import DictConfig

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
        compare.print_comparison(
            [listing.find_record(logs, str(name), stage) for name in config.compare]
        )
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
