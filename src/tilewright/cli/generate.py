"""Generates images for captions: `python src/generate.py prompt="a large red circle"`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from tilewright import files, runs
from tilewright.cli import app, settings
from tilewright.configs import instantiate
from tilewright.errors import UserError
from tilewright.hardware import resolve_device

if TYPE_CHECKING:  # torch is loaded after the settings have been checked
    from tilewright.pipeline import GeneratedImages, TextToImage
    from tilewright.prior import Sampling


@app.command("generate")
def main(config: DictConfig) -> None:
    """Generates images for captions, and saves them with their settings."""
    prompts = parse_prompts(config)
    run = resolve(config)
    out = output_folder(config, run)
    model, sampling = load(config, run)
    prompts = complete(config, model, sampling, prompts)
    images = sample(config, model, sampling, prompts)
    save(config, run, sampling, prompts, images, out)
    print(f"The images are in {out}, all of them together in grid.png")


def parse_prompts(config: DictConfig) -> list[str]:
    """Returns the captions of `prompt=`."""
    if config.prompt is None:
        raise UserError('prompt= is missing: prompt="a large red circle on the left"')
    prompts: Any = OmegaConf.to_container(config.prompt, resolve=True)
    return prompts


def resolve(config: DictConfig) -> Path:
    """Fills in the ranker and the device, checks the settings, and returns the prior's run."""
    if config.n < 1 or config.batch_size < 1:
        raise UserError(
            f"n={config.n} batch_size={config.batch_size} asks for no image: set both to 1 or more"
        )
    if config.image_prompt is None and "rows" in map(runs.override_key, settings.overrides()):
        raise UserError(
            f"rows={config.rows} needs an image: set image_prompt=PATH, or leave rows out"
        )
    settings.check_complete(config)
    run = runs.find(Path(config.paths.logs), "prior", config.run)
    if config.best_of is not None:
        settings.set_ranker_run(config, run)
    config.device = resolve_device(config.device)
    return run


def output_folder(config: DictConfig, run: Path) -> Path:
    """Returns the folder for the images, after checking that no file is in its place."""
    out = runs.follow_latest(config.out) if config.out else run / "samples"
    if next(path for path in (out, *out.parents) if path.exists()).is_file():
        raise UserError(f"out={out} is not a folder, a file is in its place: name another one")
    return out


def load(config: DictConfig, run: Path) -> tuple["TextToImage", "Sampling"]:
    """Loads the prior with its dVAE, and the sampling settings."""
    from tilewright.pipeline import TextToImage

    settings.fill_in_sampling(config, run)
    sampling = instantiate(config.sampling)
    return TextToImage.from_run(run, config.device), sampling


def complete(
    config: DictConfig, model: "TextToImage", sampling: "Sampling", prompts: list[str]
) -> list[str]:
    """Lets the prior write the rest of each caption, if the user asks for that."""
    if not config.complete:
        return prompts
    prompts = model.complete(prompts, sampling=sampling, seed=config.seed)
    print("\n".join(prompts))
    return prompts


def sample(
    config: DictConfig, model: "TextToImage", sampling: "Sampling", prompts: list[str]
) -> "GeneratedImages":
    """Samples the images, and ranks them if `best_of` is set."""
    from tilewright.viz.images import open_image

    return model.generate(
        prompts,
        config.n,
        best_of=config.best_of,
        ranker=None if config.best_of is None else instantiate(config.ranker),
        sampling=sampling,
        seed=config.seed,
        image_prompt=None if config.image_prompt is None else open_image(config.image_prompt),
        rows=0 if config.image_prompt is None else config.rows,
        batch_size=config.batch_size,
    )


def save(
    config: DictConfig,
    run: Path,
    sampling: "Sampling",
    prompts: list[str],
    images: "GeneratedImages",
    out: Path,
) -> None:
    """Writes a PNG file for each image, a grid of all of them, and pictures.json.

    The PNG files hold their settings as text, with names instead of paths, which are private.
    """
    from tilewright.viz import images as viz

    common = {"seed": config.seed, "sampling": vars(sampling)}
    paths = {"run": str(run), **common, **_optional_settings(config)}
    names = {"run": run.name, **common, **_optional_settings(config, by_name=True)}
    records = []
    for caption_index, row in enumerate(images.records(prompts)):
        for rank, record in enumerate(row):
            path = out / f"{caption_index:03}-{rank:03}.png"
            viz.save_png(images.images[caption_index, rank], path, {**names, **record})
            records.append({"file": path.name, **record})
    pictures = {"pictures": records}
    viz.save_png(
        viz.captioned_grid(prompts, images.images), out / "grid.png", {**names, **pictures}
    )
    files.write_atomically(out / "pictures.json", json.dumps({**paths, **pictures}, indent=2))


def _optional_settings(config: DictConfig, by_name: bool = False) -> dict[str, Any]:
    """Returns the settings of the image prompt and of the ranker, where they are in use."""
    used: dict[str, Any] = {}
    if config.image_prompt is not None:
        path = config.image_prompt
        used |= {"image_prompt": Path(path).name if by_name else path, "rows": config.rows}
    if config.best_of is not None:
        ranker: Any = OmegaConf.to_container(config.ranker, resolve=True)
        used |= {"best_of": config.best_of}
        used |= {"ranker": settings.choices()["ranker"] if by_name else ranker}
    return used
