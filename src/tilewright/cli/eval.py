"""Measures trained runs: `python src/eval.py metric=fid`."""

import functools
import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from tilewright import runs
from tilewright.cli import app
from tilewright.errors import UserError
from tilewright.hardware import resolve_device


@app.command("eval")
def main(config: DictConfig) -> None:
    if OmegaConf.is_missing(config, "metric"):
        options = ", ".join(f"metric={name}" for name in app.options("metric"))
        raise UserError(f"say what to measure: {options}")
    chosen = app.choices()
    name = chosen["metric"]
    run = runs.find(Path(config.paths.logs), config.stage, config.run, data=chosen.get("data"))
    data, data_name = data_settings(config, run)
    app.check(config)
    if "ranker" in config.metric:
        app.find_ranker(config, run)

    from hydra.utils import instantiate

    from tilewright.evaluations import results

    folder = run / "eval" / name
    config.device = resolve_device(config.device)
    evaluation = instantiate(config.metric)
    shutil.rmtree(folder, ignore_errors=True)  # nothing of an earlier evaluation beside this one's
    how = {"seed": config.seed, "device": config.device, "folder": folder}
    figures = evaluation(run, build_data(data), **how)
    path = results.write_results(figures, folder, run=str(run), data=data_name, seed=config.seed)
    results.log_results(figures, run, runs.steps(run))
    results.print_results(figures, f"{name} of {run.parent.name}/{run.name}")
    print(f"Figures and pictures are in {path.parent}")


def data_settings(config: DictConfig, run: Path) -> tuple[str, str]:
    """What a run is measured on, as YAML, and its name: the data that it was trained on.

    A model without its run has no data with it; `data=` then says on what it is measured.
    `data.KEY=value` changes either.
    """
    saved = runs.load_config(run)
    given = [runs.key_of(override) for override in app.overrides()]
    changes = {key: OmegaConf.select(config, key) for key in given if key.startswith("data.")}
    with open_dict(config):
        if "data" in saved:  # `data=` has said which run
            config.data, name = saved.data, saved.choices.data
            for key, value in changes.items():
                OmegaConf.update(config, key, value)
        elif config.get("data") is None:
            raise UserError(f"{run} has no data with it: say on which to measure it, data=NAME")
        else:
            name = app.choices()["data"]
            config.data.image_size = runs.image_size(run)
        # Of these, there is nothing in a configuration that trains nothing.
        config.data.update(tokenizer=None, image_tokenizer=None, train_transform=None)
    return OmegaConf.to_yaml(config.data, resolve=True), name


@functools.lru_cache(maxsize=1)  # the metrics of one command share it, and what is drawn for it
def build_data(settings: str) -> Any:
    """Pictures and captions by their settings, which may be those of a stranger's run."""
    return runs.load_data(DictConfig(OmegaConf.create(settings)))
