"""Models that travel: a folder of safetensors and JSON, with a card that says what it is."""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tilewright import runs
from tilewright.data import CaptionedImages
from tilewright.errors import UserError
from tilewright.pipeline import TextToImage
from tilewright.reranking import ContrastiveRanker
from tilewright.sharing.model_card import card
from tilewright.viz.images import captioned_grid, reconstruction_grid, save_png

SAMPLES = "samples.png"


def export(
    run: Path,
    out: Path,
    *,
    ranker: Path | None = None,
    name: str,
    license: str = "unknown",
    captions: Sequence[str] | int = 6,
    n: int = 4,
    seed: int = 0,
) -> None:
    """Writes what a run has trained to a folder of its own, whole or not at all.

    Its samples are drawn by what has been written, so that it is known to load.

    Args:
        run: of any stage, or a model that was exported before.
        ranker: a run of stage=ranker that travels with a prior.
        name: of the model, for its card; license: the Hub's abbreviation.
        captions: of the samples, or how many of the validation split.
        n: pictures for each caption.

    Raises:
        UserError: the run is not whole, or it has no data and no captions are given.
    """
    stage = runs.load_config(run).stage
    with written_whole(out) as folder:
        runs.save_model(folder, run)
        if stage == "prior":
            runs.save_model(folder / runs.DVAE, run / runs.DVAE)
            came_with_it = run / runs.RANKER
            if ranker is not None or came_with_it.is_dir():
                runs.save_model(folder / runs.RANKER, ranker or came_with_it)
        sampled = {"prior": _draw, "dvae": _reconstruct, "ranker": _only_load}[stage]
        samples = sampled(folder, run, captions, n, seed)
        (folder / "README.md").write_text(card(folder, run, name, license, samples))


@contextlib.contextmanager
def written_whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes it when all is written, and is removed if that fails."""
    folder = out.with_name(f".{out.name}-{os.getpid()}")
    folder.mkdir(parents=True)
    try:
        yield folder
        folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _data(run: Path, way_out: str) -> CaptionedImages:
    settings = runs.load_config(run).get("data")
    if settings is None:
        raise UserError(f"{run} has no data with it to show samples of: {way_out}")
    return runs.load_data(settings)


def _draw(
    folder: Path, run: Path, captions: Sequence[str] | int, n: int, seed: int
) -> dict[str, Any]:
    """Samples of a prior; what they were drawn with."""
    if isinstance(captions, int):
        examples = _data(run, "say prompt=…").examples("validation", captions)
        captions = [caption for _, caption in examples]
    settings = {"captions": list(captions), "n": n, "seed": seed}
    images = TextToImage.from_run(folder).generate(captions, n, seed=seed).images
    save_png(captioned_grid(captions, images), folder / SAMPLES, settings)
    return {"file": SAMPLES, **settings}


def _reconstruct(
    folder: Path, run: Path, captions: Sequence[str] | int, n: int, seed: int
) -> dict[str, Any]:
    """Reconstructions of a dVAE, where its data is at hand."""
    network = runs.load_network(folder)
    if "data" not in runs.load_config(run):
        return {}
    examples = _data(run, "").examples("validation", 16)
    originals = torch.stack([image for image, _ in examples])
    made = network.decode(network.encode(originals))
    save_png(reconstruction_grid(originals, made), folder / SAMPLES)
    return {"file": SAMPLES}


def _only_load(
    folder: Path, run: Path, captions: Sequence[str] | int, n: int, seed: int
) -> dict[str, Any]:
    """A ranker draws nothing."""
    ContrastiveRanker.from_run(folder)
    return {}
