"""Measures trained runs: `python src/eval.py metric=fid`."""

import functools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict

from tilewright import configs, runs
from tilewright.checks import check_whole
from tilewright.cli import app, settings
from tilewright.configs import instantiate
from tilewright.errors import UserError
from tilewright.evaluations import folders
from tilewright.hardware import resolve_device

if TYPE_CHECKING:  # torch is loaded after the settings have been checked
    from tilewright.evaluations.results import Result


# General settings, of which a metric reads some.
SHARED = {
    *("images", "extractor", "resize", "inception_weights", "features", "ranker"),
    *("sampling", "temperature", "top_k", "top_p", "guidance", "weights", "compile"),
}


@app.command("eval")
def main(config: DictConfig) -> None:
    """Measures one run by one metric, and saves the results."""
    run = find_run(config)
    data, data_record = data_settings(config, run)
    resolve(config, run)
    settings.check_folder(results_folder(run), "move or delete it")
    # The images replace the earlier ones only if the evaluation succeeds.
    with folders.temporary_folder(run) as images:
        steps = runs.trained_steps(run)  # before a training replaces the weights
        measured = measure(config, run, data, images)
        save(config, run, measured, {"steps": steps, **data_record}, images)


def find_run(config: DictConfig) -> Path:
    """Returns the run to measure: `run=`, or the newest of the metric's stage."""
    if OmegaConf.is_missing(config, "metric"):
        metrics = ", ".join(f"metric={name}" for name in settings.options("metric"))
        raise UserError(f"metric= is missing: choose one of {metrics}")
    check_used(sys.argv[1:])
    data = settings.training_data(config)
    return runs.find(Path(config.paths.logs), config.stage, config.run, data=data)


def check_used(arguments: Sequence[str]) -> None:
    """Checks that a metric of this command reads each general setting of the command line.

    Args:
        arguments: the command line, with the metrics of all jobs.

    Raises:
        UserError: no metric reads a setting, or `metric=` is repeated.
    """
    words = [word for word in arguments if runs.override_key(word) == "metric"]
    if len(words) > 1:
        metrics = ",".join(word.partition("=")[2] for word in words)
        raise UserError(f"{words[1]} replaces {words[0]}: for several, set metric={metrics}")
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    used: set[str] = set()
    for override in parser.parse_overrides(words):
        is_list = override.is_sweep_override()
        for name in override.sweep_string_iterator() if is_list else [override.value()]:
            if name not in settings.options("metric"):
                return  # the job of this metric reports the error
            used |= _references(hydra.compose("eval", [f"metric={name}"]), "metric")
    for key in settings.typed_keys():
        branch = key.partition(".")[0]
        if branch in SHARED and branch not in used:
            raise UserError(f"{key}= has no effect on {words[0]}: leave it out")


def _references(config: DictConfig, key: str) -> set[str]:
    """Returns the general settings that a setting is computed from."""
    value: Any = OmegaConf.to_container(config)
    names = set(re.findall(r"\$\{(\w+)", str(value[key])))
    return names.union(*(_references(config, name) for name in names))


def data_settings(config: DictConfig, run: Path) -> tuple[str, dict[str, Any]]:
    """Returns the settings of the data to measure on, as YAML, and the keys for the records.

    A run is measured on the data that it was trained on, unless `data=` names another dataset. A
    model has no data, so `data=` must name one. `data.KEY=value` changes a setting of either.
    """
    saved = runs.load_config(run)
    keys = [runs.override_key(override) for override in settings.overrides()]
    changes = {key: OmegaConf.select(config, key) for key in keys if key.startswith("data.")}
    name = settings.choices().get("data")
    requested = changes.get("data.image_size")
    if requested is not None and requested != (size := runs.image_size(run)):
        raise UserError(
            f"data.image_size={requested} does not fit {run}, whose images have {size} pixels: "
            "leave it out"
        )
    with open_dict(config):
        if "data" in saved and name in {None, saved.choices.get("data")}:
            config.data, name = saved.data, saved.choices.get("data")
            for key, value in changes.items():
                OmegaConf.update(config, key, configs.escape(value))
        elif config.get("data") is None:
            raise UserError(f"{run} is a model without data: name a dataset, data=NAME")
        else:
            config.data.image_size = runs.image_size(run)
            if "data.require_captions" not in changes:
                config.data.require_captions = config.stage != "dvae"
        # Their settings refer to keys that only train.yaml has.
        config.data.update(tokenizer=None, image_tokenizer=None, train_transform=None)
    return configs.to_yaml(config.data), {
        "data": name,
        **{key: _record_value(value) for key, value in changes.items()},
    }


def results_folder(run: Path) -> Path:
    """Returns the folder of this metric's results."""
    return run / "eval" / settings.choices()["metric"]


def _record_value(value: Any) -> Any:
    """Returns a setting as a value of a record. A list becomes text, because lists are spreads."""
    return value if isinstance(value, int | float | str | None) else str(value)


def resolve(config: DictConfig, run: Path) -> None:
    """Fills in the ranker and the device, after checking the settings."""
    settings.check_complete(config)
    check_whole("images", config.images)
    for key in ("splits", "sampling", "features"):
        if key in config.metric and config.metric[key] is None:
            raise UserError(f"metric.{key}=null is not possible: leave it out, or set another")
    if "ranker" in config.metric:
        settings.set_ranker_run(config, run)
    config.device = resolve_device(config.device)


def measure(config: DictConfig, run: Path, data: str, folder: Path) -> list["Result"]:
    """Runs the evaluation, which writes its images to a folder, and returns its results."""
    if runs.load_config(run).stage == "prior":
        settings.fill_in_sampling(config, run)
    evaluation = instantiate(config.metric)
    return evaluation(run, build_data(data), seed=config.seed, device=config.device, folder=folder)


@functools.lru_cache(maxsize=1)  # several metrics share the data, and the images generated for it
def build_data(yaml: str) -> Any:
    """Builds the images and captions of a run, whose settings may be a stranger's."""
    return runs.load_data(DictConfig(OmegaConf.create(yaml)))


def save(
    config: DictConfig, run: Path, measured: list["Result"], source: dict[str, Any], images: Path
) -> None:
    """Saves the results in the run and in its TensorBoard log, and prints a table.

    Args:
        source: keys of the weights and of the data for the records.
        images: folder of the evaluation's images. It is emptied.
    """
    from tilewright.evaluations import results
    from tilewright.metrics.extractors import warn_about_judges

    requested = config.metric.get("images", config.metric.get("captions"))
    common = {
        "run": str(run),
        "seed": config.seed,
        "requested_images": requested,  # `images` of a record counts those that were measured
        **source,
    }
    if "ranker" in config.metric:
        common |= {
            f"ranker.{key}": _record_value(value)
            for key, value in config.metric.ranker.items()
            if key not in {"_target_", "device"}
        }
    judges = {r.settings["extractor"] for r in measured if "extractor" in r.settings}
    warn_about_judges(run, judges, "extractor")
    folder = results_folder(run)
    with folders.lock(run):
        results.replace_images(images, folder)
        results.write_results(measured, folder, **common)
    results.log_results(measured, run, source["steps"])
    title = f"{folder.name} of {run.parent.name}/{run.name} on {source['data']}"
    results.print_results(measured, title)
    print(f"Metrics and images are in {folder}")
