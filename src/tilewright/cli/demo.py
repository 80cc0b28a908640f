"""Serves the playground page: `python src/demo.py`, then open http://127.0.0.1:7860."""

import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from tilewright import runs
from tilewright.checks import check_whole
from tilewright.cli import app, settings
from tilewright.configs import instantiate
from tilewright.errors import UserError
from tilewright.hardware import resolve_device

if TYPE_CHECKING:  # torch is loaded after the settings have been checked
    from tilewright.playground.session import Playground

log = logging.getLogger(__name__)


@app.command("demo")
def main(config: DictConfig) -> None:
    """Serves the playground page until the program is interrupted."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError(
            "the playground page needs Gradio, which is not installed: pip install "
            "'tilewright[demo]'"
        )
    settings.check_complete(config)
    for name in ("n", "rows", "batch_size", "max_candidates"):
        check_whole(name, config[name])
    if not 0 <= config.port < 2**16:
        raise UserError(f"port={config.port} is not possible: set a number from 0 to {2**16 - 1}")
    run = runs.find(Path(config.paths.logs), "prior", config.run)
    has_ranker = set_ranker_run_if_available(config, run)
    playground = load(config, run, has_ranker)
    serve(config, run, playground)


def set_ranker_run_if_available(config: DictConfig, prior: Path) -> bool:
    """Sets `config.ranker.run`. Returns False if no ranker fits and the user named none."""
    is_required = config.best_of is not None or config.ranker.get("run") is not None
    if config.ranker._target_ is None and not is_required:
        return False
    try:
        settings.set_ranker_run(config, prior)
    except UserError as error:
        if is_required:
            raise
        log.info("The page has no ranker: %s", error)
        return False
    return True


def load(config: DictConfig, run: Path, has_ranker: bool) -> "Playground":
    """Loads the prior, its dVAE, and the ranker if there is one."""
    from tilewright.pipeline import TextToImage
    from tilewright.playground.session import Playground
    from tilewright.reranking import resolve_best_of

    config.device = resolve_device(config.device)
    settings.fill_in_sampling(config, run)
    instantiate(config.sampling)  # refuses values that are not possible
    ranker = instantiate(config.ranker) if has_ranker else None
    resolve_best_of(config.n, config.best_of, ranker)
    steps = runs.trained_steps(run)  # before a training replaces the weights
    return Playground(
        TextToImage.from_run(run, config.device),
        ranker,
        run_name=run.name,
        steps=steps,
        ranker_name=settings.choices()["ranker"] if has_ranker else None,
        batch_size=config.batch_size,
        max_candidates=config.max_candidates,
        weights=config.weights,
        compile=config.compile,
    )


def serve(config: DictConfig, run: Path, playground: "Playground") -> None:
    """Builds the page and serves it."""
    from tilewright.playground import server
    from tilewright.playground.page import build_page

    data = runs.TrainingData.from_run(runs.load_config(run)).name  # of a converted model, unknown
    page = build_page(playground, config, config.examples.get(data or "", []))
    server.serve(page, config.host, config.port)
