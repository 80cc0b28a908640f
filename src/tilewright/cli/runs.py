"""Lists trained runs, or compares some: `python src/runs.py compare=[A,B]`."""

from pathlib import Path

from omegaconf import DictConfig

from tilewright.cli import app
from tilewright.errors import UserError
from tilewright.runs import compare, listing


@app.command("runs")
def main(config: DictConfig) -> None:
    chosen = app.choices()  # the two filters are names of options, as for train
    stage, data, logs = chosen.get("stage"), chosen.get("data"), Path(config.paths.logs)
    if config.compare:
        compare.show([listing.find(logs, str(name), stage) for name in config.compare])
        return
    found = listing.records(logs, stage, data)
    if not found:
        raise UserError(
            f"{logs} has no run{f' of stage={stage}' if stage else ''}"
            f"{f' on data={data}' if data else ''}: `python src/train.py stage=dvae` makes one"
        )
    listing.show(found)
