"""Turns a run into a model to share: `python src/export.py run=… out=…`."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tilewright import runs
from tilewright.checks import check_flag, check_whole
from tilewright.cli import app, settings
from tilewright.errors import UserError


@app.command("export")
def main(config: DictConfig) -> None:
    """Exports a run as a model."""
    settings.check_complete(config)
    out = Path(config.out)
    settings.check_absent("out", out)
    run = runs.find(Path(config.paths.logs), "prior" if config.run is None else None, config.run)
    ranker = find_ranker(config, run)
    check_stage(config, run)
    check_adapter(config, run)
    save(config, run, ranker, out)
    if config.images:
        print(f"The card shows {config.images} of your validation images")
    print(f"The model is in {out}, its card is {out / 'README.md'}")
    if config.adapter and config.base is None:
        folder = runs.load_config(out).base.path
        print(f"Its base is {folder}, on this machine only: before you share it, set base=NAME")


def find_ranker(config: DictConfig, run: Path) -> Path | None:
    """Returns the run of the ranker to export with a prior, if the user asks for one."""
    if not config.with_ranker:
        return None
    saved = runs.load_config(run)
    if saved.stage != "prior":
        raise UserError(
            f"with_ranker= needs a prior, and {run} is of stage={saved.stage}: leave it out"
        )
    path = None if config.with_ranker is True else config.with_ranker
    return settings.find_ranker(Path(config.paths.logs), run, path)


def check_stage(config: DictConfig, run: Path) -> None:
    """Checks that the stage of the run has the settings of the command line."""
    stage = runs.load_config(run).stage
    check_whole("images", config.images, 0)
    check_whole("captions", config.captions)
    check_whole("n", config.n)
    typed = {runs.override_key(override) for override in settings.overrides()}
    unused = [key for key in ("prompt", "captions", "n") if key in typed]
    if unused and stage != "prior":
        raise UserError(f"{unused[0]}= needs a prior, and {run} is of stage={stage}: leave it out")
    if {"prompt", "captions"} <= typed and config.prompt is not None:
        raise UserError("prompt= and captions= are both set: leave one of them out")
    if config.images and stage != "dvae":
        raise UserError(f"images= needs a dVAE, and {run} is of stage={stage}: leave it out")
    changed = [key for key, value in config.sampling.items() if value != "auto"]
    if changed and stage != "prior":
        raise UserError(
            f"sampling.{changed[0]}= needs a prior, and {run} is of stage={stage}: leave it out"
        )


def check_adapter(config: DictConfig, run: Path) -> None:
    """Checks that the run has adapters if they are to be exported alone."""
    check_flag("adapter", config.adapter)
    if config.base is not None and not config.adapter:
        raise UserError(f"base={config.base} is for adapter=true: set that too, or leave it out")
    if config.adapter and not runs.load_config(run).get("base"):
        raise UserError(f"{run} was trained without lora= and has no adapters: leave adapter out")


def save(config: DictConfig, run: Path, ranker: Path | None, out: Path) -> None:
    """Writes the model's folder."""
    from tilewright.sharing.export import export

    prompts: Any = config.prompt and OmegaConf.to_container(config.prompt, resolve=True)
    export(
        run,
        out,
        ranker=ranker,
        adapter=config.adapter,
        base=config.base,
        name=config.name or out.name,
        license=config.license,
        sampling={key: value for key, value in config.sampling.items() if value != "auto"},
        captions=prompts or config.captions,
        n=config.n,
        images=config.images,
        seed=config.seed,
    )
