"""Opens a page to play on: `python src/demo.py`, then http://127.0.0.1:7860 in a browser."""

import importlib.util
from pathlib import Path

from omegaconf import DictConfig

from tilewright import runs
from tilewright.cli import app
from tilewright.errors import UserError
from tilewright.hardware import resolve_device


@app.command("demo")
def main(config: DictConfig) -> None:
    if importlib.util.find_spec("gradio") is None:
        raise UserError(
            "the page needs Gradio, which is not installed: pip install 'tilewright[demo]'"
        )
    app.check(config)
    run = runs.find(Path(config.paths.logs), "prior", config.run)
    data = runs.load_config(run).choices.data
    ranked = ranks(config, run)

    from hydra.utils import instantiate

    from tilewright.pipeline import TextToImage
    from tilewright.playground.page import build_page
    from tilewright.playground.server import serve
    from tilewright.playground.session import Playground

    config.device = resolve_device(config.device)
    playground = Playground(
        TextToImage.from_run(run, config.device),
        instantiate(config.ranker) if ranked else None,
        run_name=run.name,
        ranker_name=app.choices()["ranker"] if ranked else None,
        batch_size=config.batch_size,
        max_candidates=config.max_candidates,
        weights=config.weights,
        compile=config.compile,
    )
    page = build_page(playground, config, config.examples.get(data, []))
    serve(page, config.host, config.port)


def ranks(config: DictConfig, run: Path) -> bool:
    """Whether there is a ranker: the page does without where none is asked for and none found."""
    asked = config.best_of is not None or config.ranker.get("run") is not None
    if config.ranker._target_ is None and not asked:
        return False
    try:
        app.find_ranker(config, run)
    except UserError:
        if asked:
            raise
        return False
    return True
