"""Quality of a text-to-image model by the number of its training pairs, on data=emoji.

Trains both stages on each number of pairs and samples images. The smaller sets are part of the
larger ones. `metric=identification` measures training captions, which a model may memorize,
and captions of concepts that no training pair shows.

    python benchmarks/data_size.py sizes=[250,1000,3200]
    python benchmarks/data_size.py dvae=[experiment=dvae_emoji] prior=[experiment=prior_emoji]

Every other key is a setting of both runs. An interrupted benchmark continues where it stopped.
Another recipe needs another logs=.
"""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import settings as command_line
import timing
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

import training
from tilewright.cli.messages import one_line_errors
from tilewright.data import CaptionedImages
from tilewright.errors import UserError
from tilewright.files import write_atomically
from tilewright.pipeline import TextToImage
from tilewright.viz.images import captioned_grid, save_png
from tilewright.viz.plots import plot_lines

DEFAULTS = {
    "sizes": [250, 500, 1000, 2000, 3200],  # training pairs; emoji without skin tones has 3,230
    "dvae": ["experiment=dvae_laptop"],  # settings of stage 1
    "prior": ["experiment=prior_laptop"],  # settings of stage 2
    "among": 100,  # candidates of the identification
    "captions": 200,  # of each split; small sets have fewer
    "seed": 0,
    "logs": "logs/data_size",
    "out": "logs/benchmarks/data_size.json",
}
SRC = Path(__file__).parents[1] / "src"
CAPTIONS = {"known": "train[:{captions}]", "new": "validation"}
SHOWN = 4  # captions of each kind in the image


def run_command(name: str, *arguments: str) -> None:
    """Runs a command of `src/`.

    Raises:
        SystemExit: it fails.
    """
    status = subprocess.run([sys.executable, str(SRC / f"{name}.py"), *arguments]).returncode
    if status:
        sys.exit(status)


def prior_run(settings: Any, size: int) -> Path:
    return Path(settings.logs) / "prior" / f"pairs_{size}"


def splits(settings: Any) -> dict[str, str]:
    """Returns the split of each kind of caption."""
    return {kind: text.format(captions=settings.captions) for kind, text in CAPTIONS.items()}


def read_data(settings: Any, size: int, others: list[str]) -> CaptionedImages:
    """Returns the data of the smallest training, whose pairs are part of all others."""
    config = training.configuration([*arguments_of("dvae", settings, size), *others])
    data = instantiate(config.data)
    data.setup()
    return data


def recipe(stage: str, settings: Any) -> list[str]:
    """Returns the settings of a stage's trainings that are the same for all sizes."""
    return [*settings[stage], f"seed={settings.seed}"]


def check_recipe(run: Path, words: list[str]) -> None:
    """Writes the recipe of a training beside its run, or compares it with that of an earlier one.

    Raises:
        UserError: the run was trained with another recipe, or with an unknown one.
    """
    file = run.with_name(f"{run.name}.recipe.json")
    if not file.exists() and not run.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(words))
        return
    earlier = json.loads(file.read_text()) if file.exists() else None
    if earlier != words:
        raise UserError(
            f"{run} was trained with {earlier or 'an unknown recipe'}, and this benchmark asks for "
            f"{words}: set another logs="
        )


def arguments_of(stage: str, settings: Any, size: int) -> list[str]:
    """Returns the settings of a stage's training on `size` pairs."""
    return [
        *recipe(stage, settings),
        "data=emoji",
        f"data.source.train={size}",
        f"paths.logs={settings.logs}",
        f"run_name=pairs_{size}",
    ]


def train_and_evaluate(settings: Any, size: int, others: list[str]) -> None:
    """Trains both stages on `size` pairs and measures the prior, unless this has been done."""
    dvae, prior = Path(settings.logs) / "dvae" / f"pairs_{size}", prior_run(settings, size)
    for run, more in ((dvae, []), (prior, [f"dvae={dvae}"])):
        stage, finished = run.parent.name, run / "finished"
        check_recipe(run, [*recipe(stage, settings), *others])
        if finished.exists():
            continue
        if (run / "checkpoints" / "last.ckpt").exists():
            run_command("train", f"stage={stage}", f"resume={run}", f"paths.logs={settings.logs}")
        else:
            run_command("train", *arguments_of(stage, settings, size), *more, *others)
        finished.touch()
    measured_splits = {record["split"] for record in records(settings, size)}
    for split in set(splits(settings).values()) - measured_splits:
        run_command(
            "eval",
            "metric=identification",
            f"run={prior}",
            f"metric.split={split}",
            f"metric.among={settings.among}",
            f"images={settings.captions}",
            f"seed={settings.seed}",
            f"paths.logs={settings.logs}",
            *[text for text in others if text.startswith("paths.")],
        )


def records(settings: Any, size: int) -> list[dict[str, Any]]:
    """Returns the records of a size's prior that were measured with these settings."""
    file = prior_run(settings, size) / "eval" / "identification" / "results.json"
    saved = json.loads(file.read_text()) if file.exists() else []
    wanted = {
        "among": settings.among,
        "requested_images": settings.captions,
        "seed": settings.seed,
    }
    return [record for record in saved if wanted.items() <= record.items()]


def measured(settings: Any, size: int) -> dict[str, Any]:
    """Returns the shares and the validation loss of a trained and evaluated size."""
    run = prior_run(settings, size)
    shares = {
        f"{kind} captions, {record['image_set']}, first {record['top']}": (
            record["value"],
            *record["interval"],
        )
        for kind, split in splits(settings).items()
        for record in records(settings, size)
        if record["split"] == split and record["image_set"] in ("generated", "reconstructed")
    }
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("validation/loss")]
    losses = {int(row["step"]): float(row["validation/loss"]) for row in rows}
    best = min(losses, key=losses.__getitem__)
    last = max(losses)
    return {
        "pairs": size,
        "best_update": best,
        "best_validation_loss": losses[best],
        "last_update": last,
        "last_validation_loss": losses[last],
        "shares": shares,
    }


def draw_samples(settings: Any, others: list[str]) -> None:
    """Writes an image: a column for each size, and the true image at the end."""
    data = read_data(settings, min(settings.sizes), others)
    examples = [pair for split in ("train", "validation") for pair in data.examples(split, SHOWN)]
    real, captions = zip(*examples, strict=True)
    columns = [
        TextToImage.from_run(prior_run(settings, size))
        .generate(list(captions), seed=settings.seed)
        .images[:, 0]
        .cpu()
        for size in settings.sizes
    ]
    grid = captioned_grid(captions, torch.stack([*columns, torch.stack(real)], dim=1))
    save_png(grid, Path(settings.out).with_suffix(".png"))


def main() -> None:
    settings, others = command_line.parse_known(DEFAULTS, __doc__)
    available = len(read_data(settings, max(settings.sizes), others).table("train"))
    if max(settings.sizes) > available:
        raise UserError(
            f"sizes={max(settings.sizes)} is more than the {available} training pairs of emoji: "
            "lower it, or set data.source.skin_tones=true"
        )
    results = []
    for size in settings.sizes:
        train_and_evaluate(settings, size, others)
        results.append(measured(settings, size))
    names = list(results[0]["shares"])
    rows = [
        [str(result["pairs"]), *(f"{result['shares'][name][0]:.2f}" for name in names)]
        for result in results
    ]
    timing.print_table(
        "Identification by the number of training pairs",
        ["pairs", *names],
        rows,
        f"share of captions whose true image is the nearest among {settings.among}",
    )
    lines = {
        name: [(result["pairs"], *result["shares"][name]) for result in results]
        for name in names
        if "generated" in name
    }
    plot_lines(
        lines,
        Path(settings.out).with_name("data_size_curve.png"),
        x_label="training pairs",
        y_label="share identified",
        log_x=True,
    )
    draw_samples(settings, others)
    timing.write(
        settings.out,
        results=results,
        settings=OmegaConf.to_container(settings),
        overrides=others,
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
