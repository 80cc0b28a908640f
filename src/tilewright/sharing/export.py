"""Export of a run as a model: a folder of safetensors, JSON and a model card."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tilewright import runs
from tilewright.data.image_tokenizer import split_batches
from tilewright.errors import UserError
from tilewright.files import atomic_folder
from tilewright.pipeline import TextToImage
from tilewright.reranking import ContrastiveRanker
from tilewright.sharing.model_card import Samples, model_card
from tilewright.viz.images import captioned_grid, reconstruction_grid, save_png

log = logging.getLogger(__name__)

SAMPLES = "samples.png"


def export(
    run: Path,
    out: Path,
    *,
    ranker: Path | None = None,
    adapter: bool = False,
    base: str | None = None,
    name: str,
    license: str = "unknown",
    sampling: Mapping[str, Any] | None = None,
    captions: Sequence[str] | int = 6,
    n: int = 4,
    images: int = 0,
    seed: int = 0,
) -> None:
    """Exports a run as a model. If a step fails, `out` is not created.

    The samples come from the exported files, which tests that they load.

    Args:
        run: a run of any stage, or an exported model.
        out: folder of the model; it must not exist yet.
        ranker: run of stage=ranker to include with a prior; None keeps the one of an exported
            model.
        adapter: True exports the run's low-rank adapters alone. Loading them takes everything else
            from their base.
        base: name of the base on the Hub, for an adapter. None names its folder on this machine.
        name: name of the model, for its card.
        license: license of the model, by its identifier on the Hub.
        sampling: arguments of `Sampling` that differ from the run's recommendation.
        captions: captions of the samples, or their number from the validation split.
        n: images per caption.
        images: number of validation images that the card of a dVAE shows beside their
            reconstructions. They become public with the model.
        seed: seed of the samples.

    Raises:
        UserError: the run is incomplete, or lacks the data for `images` or `captions`.
    """
    config = runs.load_config(run)
    stage = config.stage
    if runs.reads_features(config) and Path(config.tokenizer.path).expanduser().is_dir():
        log.warning(
            "The model names its text encoder by the folder %s of this machine: before you share "
            "it, set tokenizer.path in config.json to the encoder's name on the Hub",
            config.tokenizer.path,
        )
    with atomic_folder(out, exclusive=True) as folder:
        _copy_networks(stage, folder, run, ranker, sampling or {}, adapter)
        samples: Samples | None = None
        if stage == "prior":
            samples = _write_samples(folder, _resolve_captions(run, captions), n, seed)
        elif stage == "dvae":
            samples = _write_reconstructions(folder, run, images)
        else:
            ContrastiveRanker.from_run(folder)
        card = model_card(folder, run, name, license, samples, base)
        (folder / "README.md").write_text(card)
        if base is not None:  # last, because loading the adapter would download the base
            runs.name_base(folder, base)


def _copy_networks(
    stage: str,
    folder: Path,
    run: Path,
    ranker: Path | None,
    sampling: Mapping[str, Any],
    adapter: bool,
) -> None:
    """Copies the run's network, and with a prior its recommended sampling, dVAE and ranker."""
    runs.save_model(folder, run, sampling, adapter)
    if stage != "prior":
        return
    if not adapter:
        runs.save_model(folder / runs.DVAE, runs.dvae_folder(run))
    if ranker is None and (run / runs.RANKER).is_dir():
        ranker = run / runs.RANKER
    if ranker is not None:
        runs.save_model(folder / runs.RANKER, ranker)


def _resolve_captions(run: Path, captions: Sequence[str] | int) -> list[str]:
    """Returns the captions, or a sample of the run's validation split."""
    if not isinstance(captions, int):
        return list(captions)
    pairs = _examples(run, captions, "set prompt=…")
    return [caption for _, caption in pairs]


def _examples(run: Path, count: int, advice: str) -> list[tuple[Tensor, str]]:
    """Returns images and captions of the validation split that a run was trained on.

    Args:
        advice: what to do without the data, for messages.

    Raises:
        UserError: the run is an exported model, or its data cannot be read.
    """
    settings = runs.load_config(run).get("data")
    if settings is None:
        raise UserError(f"{run} is a model, which has no data: {advice}")
    try:
        return list(runs.load_data(settings).examples("validation", count))
    except UserError as error:
        raise UserError(f"the data of {run} cannot be read ({error}): {advice}") from error


def _write_samples(folder: Path, captions: list[str], n: int, seed: int) -> Samples:
    """Writes a grid of images that the exported prior generates."""
    model = TextToImage.from_run(folder)
    model.check_supports(ranker=model.ranker)
    generated = model.generate(captions, n, seed=seed)
    metadata = {"captions": captions, "n": n, "seed": seed}
    save_png(captioned_grid(captions, generated.images), folder / SAMPLES, metadata)
    return Samples(SAMPLES, captions, n, seed)


def _write_reconstructions(folder: Path, run: Path, count: int) -> Samples | None:
    """Writes a grid of validation images and the exported dVAE's reconstructions of them."""
    network = runs.load_network(folder)
    if count == 0:
        return None
    pairs = _examples(run, count, f"leave images={count} out")
    originals = torch.stack([image for image, _ in pairs])
    batches = split_batches(originals, network.image_size)
    reconstructions = torch.cat([network.decode(network.encode(batch)) for batch in batches])
    save_png(reconstruction_grid(originals, reconstructions), folder / SAMPLES)
    return Samples(SAMPLES)
