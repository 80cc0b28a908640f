"""Draws pictures for captions: `python src/generate.py prompt="a large red circle"`."""

import json
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from tilewright import runs
from tilewright.cli import app
from tilewright.errors import UserError
from tilewright.hardware import resolve_device


@app.command("generate")
def main(config: DictConfig) -> None:
    if OmegaConf.is_missing(config, "prompt"):
        raise UserError('say what to draw: prompt="a large red circle on the left"')
    prompts = [config.prompt] if isinstance(config.prompt, str) else config.prompt
    if not isinstance(prompts, (list, ListConfig)) or any(not isinstance(p, str) for p in prompts):
        raise UserError(f"prompt={config.prompt} is no caption: in quotes it is, prompt='\"7\"'")
    if config.n < 1 or config.batch_size < 1 or not config.prompt:
        raise UserError(
            f"n={config.n} batch_size={config.batch_size} prompt={config.prompt!r} asks for no "
            "picture"
        )
    app.check(config)
    run = runs.find(Path(config.paths.logs), "prior", config.run)
    if config.best_of is not None:
        app.find_ranker(config, run)
    prompts = list(prompts)

    from hydra.utils import instantiate

    from tilewright.pipeline import TextToImage
    from tilewright.viz.images import captioned_grid, open_image, save_png

    sampling = instantiate(config.sampling)
    config.device = resolve_device(config.device)
    model = TextToImage.from_run(run, config.device)
    ranker = None if config.best_of is None else instantiate(config.ranker)
    if config.complete:
        prompts = model.complete(prompts, sampling=sampling, seed=config.seed)
        print("\n".join(prompts))
    image_prompt = None if config.image_prompt is None else open_image(config.image_prompt)
    out = Path(config.out) if config.out else run / "samples"
    if next(path for path in (out, *out.parents) if path.exists()).is_file():
        raise UserError(f"out={out} is no folder: there is a file in its place")
    best = model.generate(
        prompts,
        config.n,
        best_of=config.best_of,
        ranker=ranker,
        sampling=sampling,
        seed=config.seed,
        image_prompt=image_prompt,
        rows=config.rows,
        batch_size=config.batch_size,
    )
    settings = {"run": str(run), "seed": config.seed, "sampling": vars(sampling)}
    names = {"run": run.name}  # for the pictures, which travel: paths are of use here only
    if image_prompt is not None:
        settings |= {"image_prompt": config.image_prompt, "rows": config.rows}
        names["image_prompt"] = Path(config.image_prompt).name
    if best.scores is not None:
        settings |= {
            "best_of": config.best_of,
            "ranker": OmegaConf.to_container(config.ranker, resolve=True),
        }
        names["ranker"] = app.choices()["ranker"]
    records = []
    for caption, row in enumerate(best.records(prompts)):
        for place, record in enumerate(row):
            path = out / f"{caption:03}-{place:03}.png"
            save_png(best.images[caption, place], path, {**settings, **names, **record})
            records.append({"file": path.name, **record})
    pictures = {"pictures": records}
    save_png(
        captioned_grid(prompts, best.images), out / "grid.png", {**settings, **names, **pictures}
    )
    (out / "pictures.json").write_text(json.dumps({**settings, **pictures}, indent=2))
    print(f"The pictures are in {out}, all of them together in grid.png")
