"""Generates images for captions: `python src/generate.py prompt="a large red circle"`."""

import json
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from tilewright import files, runs
from tilewright.checks import check_flag, check_whole
from tilewright.cli import app, settings
from tilewright.cli.prompts import Prompt, read_prompts
from tilewright.configs import instantiate
from tilewright.errors import UserError
from tilewright.hardware import resolve_device

if TYPE_CHECKING:  # torch is loaded after the settings have been checked
    from PIL.Image import Image

    from tilewright.pipeline import GeneratedImages, TextToImage
    from tilewright.prior import Sampling
    from tilewright.reranking import Ranker


log = logging.getLogger(__name__)

GRID_CAPTIONS = 64  # captions per grid, which are generated and saved together


@app.command("generate")
def main(config: DictConfig) -> None:
    """Generates images for captions, and saves them with their settings."""
    prompts = parse_prompts(config)
    run = resolve(config)
    out = output_folder(config, run)
    in_use = f"another process generates images in {out}: wait for its end, or set out=FOLDER"
    with files.locked_folder(out, in_use, "set out=FOLDER, on a file system that has locks"):
        pipeline = load(config, run)
        prompts = complete(config, pipeline, prompts)
        grids = generate(config, run, pipeline, prompts, out)
    print(f"The images are in {out}, all of them together in {' to '.join(grids)}")


@dataclass(frozen=True)
class Pipeline:
    """Model, sampling settings, ranker and image prompt of this command line.

    `steps` is the number of updates of the prior's weights.
    """

    model: "TextToImage"
    steps: int
    sampling: "Sampling"
    ranker: "Ranker | None"
    image_prompt: "Image | None"


def parse_prompts(config: DictConfig) -> list[Prompt]:
    """Returns the captions of `prompt=` or of `prompts=FILE`."""
    if config.prompt is not None and config.prompts is not None:
        raise UserError("prompt= and prompts= are both set: leave one of them out")
    if config.prompts is not None:
        return read_prompts(str(runs.follow_latest(config.prompts)), config.caption_column)
    if config.caption_column is not None:
        raise UserError(
            f"caption_column={config.caption_column} needs a file: set prompts=FILE, or leave it "
            "out"
        )
    if config.prompt is None:
        raise UserError(
            'prompt= is missing: prompt="a large red circle on the left", or prompts=FILE for a '
            "file of captions"
        )
    captions: Any = OmegaConf.to_container(config.prompt, resolve=True)
    empty = sum(not caption.strip() for caption in captions)
    if empty and not config.complete:
        log.warning(
            "%d of %d captions without text: their images show anything", empty, len(captions)
        )
    return list(map(Prompt, captions))


def resolve(config: DictConfig) -> Path:
    """Fills in the ranker and the device, checks the settings, and returns the prior's run."""
    check_whole("n", config.n)
    check_whole("batch_size", config.batch_size)
    check_flag("complete", config.complete)
    if config.image_prompt is None and "rows" in map(runs.override_key, settings.overrides()):
        raise UserError(
            f"rows={config.rows} needs an image: set image_prompt=PATH, or leave rows out"
        )
    ranker = [text for text in settings.overrides() if re.match(r"\+*ranker[.=]", text)]
    if config.best_of is None and ranker:
        raise UserError(f"{ranker[0]} ranks nothing: set best_of=N, or leave it out")
    settings.check_complete(config)
    run = runs.find(Path(config.paths.logs), "prior", config.run)
    if config.best_of is not None:
        settings.set_ranker_run(config, run)
    config.device = resolve_device(config.device)
    return run


def output_folder(config: DictConfig, run: Path) -> Path:
    """Returns the folder for the images, after checking that no file is in its place.

    Each job of a sweep has its own folder.
    """
    out = runs.follow_latest(config.out) if config.out else run / "samples"
    if settings.is_sweep():
        out = out.resolve()
        out = out.with_name(settings.job_name(out.name))
    settings.check_folder(out, "name another one with out=")
    return out


def load(config: DictConfig, run: Path) -> Pipeline:
    """Loads the model, the ranker and the image prompt, and checks them against the settings."""
    from tilewright.pipeline import TextToImage
    from tilewright.reranking import resolve_best_of
    from tilewright.viz.images import open_image

    settings.fill_in_sampling(config, run)
    image_prompt = config.image_prompt
    steps = runs.trained_steps(run)  # before a training replaces the weights
    pipeline = Pipeline(
        TextToImage.from_run(run, config.device),
        steps,
        instantiate(config.sampling),
        None if config.best_of is None else instantiate(config.ranker),
        None if image_prompt is None else open_image(runs.follow_latest(image_prompt)),
    )
    resolve_best_of(config.n, config.best_of, pipeline.ranker)
    return pipeline


def complete(config: DictConfig, pipeline: Pipeline, prompts: list[Prompt]) -> list[Prompt]:
    """Lets the prior write the rest of each caption, if the user asks for that."""
    if not config.complete:
        return prompts
    captions = pipeline.model.complete(
        [prompt.caption for prompt in prompts], sampling=pipeline.sampling, seed=config.seed
    )
    print("\n".join(captions))
    pairs = zip(prompts, captions, strict=True)
    return [
        replace(prompt, caption=caption, origin={"beginning": prompt.caption, **prompt.origin})
        for prompt, caption in pairs
    ]


def generate(
    config: DictConfig, run: Path, pipeline: Pipeline, prompts: list[Prompt], out: Path
) -> list[str]:
    """Samples and saves the images, grid by grid. Returns the names of the first and last grid.

    The PNG files hold their settings as text, with names instead of paths, which are private.
    """
    from tilewright.data.truncation import warn_of_truncation
    from tilewright.viz import images as viz

    sampling = vars(pipeline.sampling)
    common = {"steps": pipeline.steps, "seed": config.seed, "sampling": sampling}
    paths = {"run": str(run), **common, **_optional_settings(config)}
    names = {"run": run.name, **common, **_optional_settings(config, by_name=True)}
    pictures: list[dict[str, Any]] = []
    all_captions = [prompt.caption for prompt in prompts]
    warn_of_truncation(pipeline.model.tokenizer, all_captions)  # not once per grid
    starts = range(0, len(prompts), GRID_CAPTIONS)
    digits = max(3, len(str(len(prompts) - 1)))
    grids = [f"grid-{start:0{digits}}.png" for start in starts] if len(starts) > 1 else ["grid.png"]
    for start, grid in zip(starts, grids, strict=True):
        part = prompts[start : start + GRID_CAPTIONS]
        captions = [prompt.caption for prompt in part]
        images = sample(config, pipeline, captions, start)
        if start == 0:
            remove_listed_images(out)
        records = []
        for index, row in enumerate(images.records(captions)):
            for rank, record in enumerate(row):
                path = out / f"{start + index:0{digits}}-{rank:03}.png"
                record = {**record, **part[index].origin}
                viz.save_png(images.images[index, rank], path, {**names, **record})
                records.append({"file": path.name, **record})
        grid_image = viz.captioned_grid(captions, images.images)
        viz.save_png(grid_image, out / grid, {**names, "pictures": records})
        pictures += records
        saved = json.dumps({**paths, "pictures": pictures}, indent=2)
        files.write_atomically(out / "pictures.json", saved)
        if len(grids) > 1:
            print(f"{grid}: {start + len(part)} of {len(prompts)} captions", flush=True)
    return grids if len(grids) < 2 else [grids[0], grids[-1]]


def remove_listed_images(out: Path) -> None:
    """Removes the images of an earlier command, which its pictures.json lists, and their grids."""
    try:
        pictures = json.loads((out / "pictures.json").read_text())["pictures"]
        names = [str(picture["file"]) for picture in pictures]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in [*names, *(grid.name for grid in out.glob("grid*.png"))]:
        if re.fullmatch(r"\d+-\d+\.png|grid(-\d+)?\.png", name):  # others are the user's files
            (out / name).unlink(missing_ok=True)


def sample(
    config: DictConfig, pipeline: Pipeline, captions: list[str], start: int
) -> "GeneratedImages":
    """Samples and ranks the images of captions. `start` is the index of the first caption."""
    return pipeline.model.generate(
        captions,
        config.n,
        best_of=config.best_of,
        ranker=pipeline.ranker,
        sampling=pipeline.sampling,
        seed=config.seed,
        image_prompt=pipeline.image_prompt,
        rows=0 if config.image_prompt is None else config.rows,
        batch_size=config.batch_size,
        first_caption=start,
    )


def _optional_settings(config: DictConfig, by_name: bool = False) -> dict[str, Any]:
    """Returns the settings of the completion, the files and the ranker that are in use."""
    used: dict[str, Any] = {"complete": True} if config.complete else {}
    if config.prompts is not None:
        used |= {"prompts": Path(config.prompts).name if by_name else config.prompts}
    if config.image_prompt is not None:
        path = config.image_prompt
        used |= {"image_prompt": Path(path).name if by_name else path, "rows": config.rows}
    if config.best_of is not None:
        ranker: Any = OmegaConf.to_container(config.ranker, resolve=True)
        used |= {"best_of": config.best_of}
        used |= {"ranker": settings.choices()["ranker"] if by_name else ranker}
    return used
