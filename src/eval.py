"""Measures trained runs: `python src/eval.py metric=fid`."""

import functools
import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from tilewright import command_line, runs
from tilewright.errors import UserError


@command_line.command("eval")
def main(config: DictConfig) -> None:
    if OmegaConf.is_missing(config, "metric"):
        options = ", ".join(f"metric={name}" for name in metrics())
        raise UserError(f"say what to measure: {options}")
    chosen = command_line.choices()
    with open_dict(config):
        config.pop("data", None)  # its name says which run; the run itself knows its data
    command_line.check(config)
    name = chosen["metric"]
    run = runs.find(Path(config.paths.logs), config.stage, config.run, data=chosen.get("data"))
    trained_on = runs.load_config(run).choices.data
    if "ranker" in config.metric:
        command_line.find_ranker(config, trained_on)

    from hydra.utils import instantiate

    from tilewright.evaluations import results

    folder = run / "eval" / name
    config.device = command_line.device(config.device)
    evaluation = instantiate(config.metric)
    shutil.rmtree(folder, ignore_errors=True)  # nothing of an earlier evaluation beside this one's
    how = {"seed": config.seed, "device": config.device, "folder": folder}
    figures = evaluation(run, data_of(run), **how)
    path = results.write(figures, folder, run=str(run), data=trained_on, seed=config.seed)
    results.log(figures, run, runs.steps(run))
    results.show(figures, f"{name} of {run}")
    print(f"Figures and pictures are in {path.parent}")


@functools.lru_cache(maxsize=1)  # the metrics of one command share it, and what is drawn for it
def data_of(run: Path) -> Any:
    """A run's own data, as pictures and captions: no training, so neither tokens nor tokenizers."""
    from hydra.utils import instantiate

    return instantiate(runs.load_config(run).data, tokenizer=None, image_tokenizer=None)


def metrics() -> list[str]:
    """Names of all metrics."""
    files = (command_line.CONF / "metric").glob("*.yaml")
    return sorted(file.stem for file in files if not file.stem.startswith("_"))


if __name__ == "__main__":
    main()
