"""Draws pictures for captions: `python src/generate.py prompt="a large red circle"`."""

import json
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from tilewright import command_line, runs
from tilewright.errors import UserError


@command_line.command("generate")
def main(config: DictConfig) -> None:
    if OmegaConf.is_missing(config, "prompt"):
        raise UserError('say what to draw: prompt="a large red circle on the left"')
    if config.n < 1 or len(config.prompt) == 0:
        raise UserError(f"n={config.n} prompt={config.prompt!r} asks for no picture")
    command_line.check(config)
    run = runs.find(Path(config.paths.logs), "prior", config.run)
    prompts = [config.prompt] if isinstance(config.prompt, str) else list(config.prompt)

    from hydra.utils import instantiate

    from tilewright.pictures import captioned_grid, open_picture, save
    from tilewright.pipeline import TextToImage

    sampling = instantiate(config.sampling)
    model = TextToImage.from_run(run, command_line.device(config.device))
    if config.complete:
        prompts = model.complete(prompts, sampling=sampling, seed=config.seed)
        print("\n".join(prompts))
    image_prompt = None if config.image_prompt is None else open_picture(config.image_prompt)
    pictures = model(
        prompts,
        config.n,
        sampling=sampling,
        seed=config.seed,
        image_prompt=image_prompt,
        rows=config.rows,
    )
    out = Path(config.out) if config.out else run / "samples"
    records = []
    for number, (prompt, row) in enumerate(zip(prompts, pictures, strict=True)):
        for candidate, picture in enumerate(row):
            path = out / f"{number:03}-{candidate:03}.png"
            save(picture, path)
            records.append({"file": path.name, "prompt": prompt, "candidate": candidate})
    save(captioned_grid(prompts, pictures), out / "grid.png")
    settings = {"run": str(run), "seed": config.seed, "sampling": vars(sampling)}
    (out / "pictures.json").write_text(json.dumps({**settings, "pictures": records}, indent=2))
    print(f"{len(records)} pictures are in {out}, all of them together in {out / 'grid.png'}")


if __name__ == "__main__":
    main()
