"""Makes a model that travels of a run: `python src/export.py run=… out=…`."""

from pathlib import Path

from omegaconf import DictConfig

from tilewright import runs
from tilewright.cli import app
from tilewright.errors import UserError


@app.command("export")
def main(config: DictConfig) -> None:
    app.check(config)
    logs, out = Path(config.paths.logs), Path(config.out)
    if out.exists():
        raise UserError(f"out={out} exists: name another folder, or remove it")
    run = runs.find(logs, "prior" if config.run is None else None, config.run)
    saved, ranker = runs.load_config(run), None
    if config.with_ranker:
        if saved.stage != "prior":
            raise UserError(f"with_ranker= goes with a prior, and {run} is of stage={saved.stage}")
        wanted = None if config.with_ranker is True else config.with_ranker
        ranker = runs.find(logs, "ranker", wanted, data=saved.choices.data)
    prompts = [config.prompt] if isinstance(config.prompt, str) else config.prompt

    from tilewright.sharing.export import export

    export(
        run,
        out,
        ranker=ranker,
        name=config.name or out.name,
        license=config.license,
        captions=prompts or config.captions,
        n=config.n,
        seed=config.seed,
    )
    print(f"The model is in {out}, its card is {out / 'README.md'}")
