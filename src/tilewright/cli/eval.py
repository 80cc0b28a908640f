"""Measures trained runs: `python src/eval.py metric=fid`."""

import functools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict

from tilewright import runs
from tilewright.cli import app, settings
from tilewright.errors import UserError
from tilewright.hardware import resolve_device

if TYPE_CHECKING:  # torch is loaded after the settings have been checked
    from tilewright.evaluations.results import Result


@app.command("eval")
def main(config: DictConfig) -> None:
    """Measures one run by one metric, and saves the results."""
    run = find_run(config)
    data, data_name = data_settings(config, run)
    resolve(config, run)
    measured = measure(config, run, data)
    save(config, run, measured, data_name)


def find_run(config: DictConfig) -> Path:
    """Returns the run to measure: `run=`, or the newest of the metric's stage."""
    if OmegaConf.is_missing(config, "metric"):
        metrics = ", ".join(f"metric={name}" for name in settings.options("metric"))
        raise UserError(f"metric= is missing: choose one of {metrics}")
    data = settings.choices().get("data")
    return runs.find(Path(config.paths.logs), config.stage, config.run, data=data)


def data_settings(config: DictConfig, run: Path) -> tuple[str, str]:
    """Returns the settings of the data to measure on, as YAML, and the dataset's name.

    A run is measured on the data that it was trained on. A model has no data, so that `data=` must
    name a dataset. `data.KEY=value` changes a setting of either.
    """
    saved = runs.load_config(run)
    keys = [runs.override_key(override) for override in settings.overrides()]
    changes = {key: OmegaConf.select(config, key) for key in keys if key.startswith("data.")}
    with open_dict(config):
        if "data" in saved:  # here, `data=` has only selected the run
            config.data, name = saved.data, saved.choices.data
            for key, value in changes.items():
                OmegaConf.update(config, key, value)
        elif config.get("data") is None:
            raise UserError(f"{run} is a model without data: name a dataset, data=NAME")
        else:
            name = settings.choices()["data"]
            config.data.image_size = runs.image_size(run)
        # Their settings refer to keys that only train.yaml has.
        config.data.update(tokenizer=None, image_tokenizer=None, train_transform=None)
    return OmegaConf.to_yaml(config.data, resolve=True), name


def resolve(config: DictConfig, run: Path) -> None:
    """Fills in the ranker and the device, after checking the settings."""
    settings.check_complete(config)
    if config.images < 1:
        raise UserError(f"images={config.images} asks for no image: set 1 or more")
    if "ranker" in config.metric:
        settings.set_ranker_run(config, run)
    config.device = resolve_device(config.device)


def measure(config: DictConfig, run: Path, data: str) -> list["Result"]:
    """Runs the evaluation in an empty folder, and returns its results."""
    from hydra.utils import instantiate

    folder = results_folder(run)
    if runs.load_config(run).stage == "prior":
        settings.fill_in_sampling(config, run)
    evaluation = instantiate(config.metric)
    shutil.rmtree(folder, ignore_errors=True)  # removes the files of an earlier evaluation
    return evaluation(run, build_data(data), seed=config.seed, device=config.device, folder=folder)


@functools.lru_cache(maxsize=1)  # several metrics share the data, and the images generated for it
def build_data(yaml: str) -> Any:
    """Builds the images and captions of a run, whose settings may be a stranger's."""
    return runs.load_data(DictConfig(OmegaConf.create(yaml)))


def save(config: DictConfig, run: Path, measured: list["Result"], data_name: str) -> None:
    """Writes results.json, adds the values to the run's TensorBoard log, and prints a table."""
    from tilewright.evaluations import results

    folder = results_folder(run)
    results.write_results(measured, folder, run=str(run), data=data_name, seed=config.seed)
    results.log_results(measured, run, runs.trained_steps(run))
    results.print_results(measured, f"{folder.name} of {run.parent.name}/{run.name}")
    print(f"Metrics and images are in {folder}")


def results_folder(run: Path) -> Path:
    """Returns the folder of this metric's results."""
    return run / "eval" / settings.choices()["metric"]
