"""Alignment of samples after equal training time: this project's prior and DALLE-pytorch's.

Both learn the same image tokens (data=shapes, a trained dVAE), read the same text tokens and have
the same width, depth and heads. Ours is first, with the recipe of `stage=prior`. A short timing
estimates how many steps fit into the minutes, and the schedule spans these steps. DALLE-pytorch's
then gets the time that ours took. At several moments the clock is stopped. Each prior samples one
image per caption at temperature 1, and the checker of shapes counts those that match.

    python benchmarks/prior_quality.py minutes=10 [peer.batch_size=32 peer.learning_rate=1e-3]
        [peer.attn_types=[axial_row,axial_col,conv_like]] [dvae=PATH] [any key=value of conf/]
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import peers
import priors
import pytorch_lightning as pl
import settings as command_line
import timing
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

import training
from tilewright.cli import app
from tilewright.cli.messages import one_line_errors
from tilewright.data import CaptionedImages
from tilewright.data.sources.shapes import caption_is_true, caption_kind
from tilewright.metrics.alignment import Share
from tilewright.pipeline import TextToImage
from tilewright.prior import Sampling
from tilewright.viz.plots import plot_lines

TASK = ["stage=prior", "data=shapes"]
DEFAULTS = {
    "minutes": 5.0,
    "dvae": None,  # a run; null: the newest one on shapes
    "moments": 4,  # number of measurements, the last one at the end
    "captions": 400,  # per split
    "splits": ["validation", "zeroshot"],
    "timed_steps": 40,  # for the estimate of steps
    "threads": None,  # null: torch's default
    "out": "logs/benchmarks/prior_quality.json",
    # Defaults of DALLE-pytorch's class, training defaults of its train_dalle.py: Adam at a constant
    # learning rate, in fp32, with the gradient norm clipped.
    "peer": {
        "attn_types": ["full"],
        "shift_tokens": True,
        "rotary_emb": True,
        "attn_dropout": 0.0,
        "ff_dropout": 0.0,
        "batch_size": 4,
        "learning_rate": 3e-4,
        "clip_grad_norm": 0.5,
        "filter_thres": 0.0,  # cuts nothing off, like ours
        "bf16": False,
    },
}
NETWORK_OPTIONS = ("attn_types", "shift_tokens", "rotary_emb", "attn_dropout", "ff_dropout")
BATCH = 100  # captions per sampling batch


class Clock:
    """Seconds of training, without measurements."""

    def __init__(self) -> None:
        self.total, self.started = 0.0, None

    def run(self) -> None:
        self.started = time.perf_counter()

    def stop(self) -> None:
        self.total, self.started = self.seconds, None

    @property
    def seconds(self) -> float:
        return self.total + (0.0 if self.started is None else time.perf_counter() - self.started)


@dataclass
class Progress:
    """A training and its measurements."""

    name: str
    parameters: int
    batch_size: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    steps: int = 0
    seconds: float = 0.0
    moments: list[dict[str, Any]] = field(default_factory=list)

    def record(self, steps: int, seconds: float, results: list[dict[str, Any]]) -> None:
        self.steps, self.seconds = steps, seconds
        self.moments.append({"steps": steps, "seconds": seconds, "alignment": results})


def configuration(overrides: list[str], steps: int, moments: int) -> DictConfig:
    """Returns the configuration of `python src/train.py` with these settings, without observers.

    Args:
        moments: number of validations, evenly spread, of one batch each. The averaged weights are
            in place during them.
    """
    own = [
        f"trainer.max_steps={steps}",
        f"trainer.val_check_interval={steps // max(moments, 1)}",
        f"trainer.limit_val_batches={min(moments, 1)}",
    ]
    return training.configuration([*TASK, *overrides, *own])


def read_data(config: DictConfig) -> CaptionedImages:
    """Returns the data with encoded images and a trained tokenizer, before the clock runs."""
    data = instantiate(config.data)
    data.setup()
    data.tokenizer.train(data.captions("train"))
    for split in ("train", "validation"):
        data.dataset(split, training=split == "train")
    return data


class AlignmentTest:
    """Shares of sampled images that the checker accepts, one image per caption."""

    def __init__(self, data: CaptionedImages, splits: list[str], captions: int):
        self.captions = {
            split: [caption for _, caption in data.examples(split, captions)] for split in splits
        }

    def __call__(self, draw: Callable[[list[str]], Tensor]) -> list[dict[str, Any]]:
        """Returns the shares by split and by number of objects in the caption.

        Args:
            draw: samples images [C, 3, H, W] for captions.
        """
        results = []
        for split, captions in self.captions.items():
            verdicts = defaultdict(list)
            for first in range(0, len(captions), BATCH):
                part = captions[first : first + BATCH]
                for caption, image in zip(part, draw(part).cpu(), strict=True):
                    objects = (
                        "one object" if caption_kind(caption) == "one object" else "two objects"
                    )
                    verdicts[objects].append(caption_is_true(image, caption))
            for objects, passed in sorted(verdicts.items()):
                share = Share(sum(passed), len(passed))
                results.append(
                    {
                        "split": split,
                        "captions": objects,
                        "share": share.value,
                        "interval": share.interval,
                        "number": share.trials,
                    }
                )
        return results


class Measurements(pl.Callback):
    """Measures a prior at its validations."""

    def __init__(self, progress: Progress, examine: AlignmentTest | None):
        self.progress, self.examine, self.clock = progress, examine, Clock()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.clock.run()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.clock.stop()

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.examine is not None:
            model = TextToImage.from_trainer(trainer, pl_module)
            paper = Sampling()  # DALLE-pytorch samples at temperature 1, too
            results = self.examine(
                lambda captions: model.generate(captions, sampling=paper, batch_size=BATCH).images[
                    :, 0
                ]
            )
            self.progress.record(trainer.global_step, self.clock.seconds, results)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.clock.run()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.progress.steps, self.progress.seconds = trainer.global_step, self.clock.seconds


def train_ours(
    config: DictConfig, data: CaptionedImages, examine: AlignmentTest | None = None
) -> Progress:
    """Trains this project's prior."""
    pl.seed_everything(config.seed, verbose=False)
    module = instantiate(config.model)
    parameters = sum(p.numel() for p in module.parameters())
    progress = Progress("Tilewright", parameters, data.batch_size)
    trainer = training.make_trainer(config, Measurements(progress, examine))
    trainer.fit(module, data)
    progress.device = trainer.strategy.root_device
    return progress


def steps_in(seconds: float, make: Callable[[int], DictConfig], timed: int) -> int:
    """Estimates the steps that fit, from two short trainings whose difference has no startup."""
    data = read_data(make(timed))
    short, long = (train_ours(make(steps), data).seconds for steps in (timed // 4, timed))
    each = (long - short) / (timed - timed // 4)
    return max(round(seconds / each), 1)


def train_peer(
    package: ModuleType,
    config: DictConfig,
    recipe: DictConfig,
    data: CaptionedImages,
    examine: AlignmentTest,
    like: Progress,
) -> Progress:
    """Trains DALLE-pytorch's prior as its train_dalle.py, for as long as ours."""
    pl.seed_everything(config.seed, verbose=False)
    network, stream = config.model.network, config.model.network.stream
    shape = OmegaConf.create({**network, **stream})
    options = {name: recipe[name] for name in NETWORK_OPTIONS}
    options["attn_types"] = tuple(recipe.attn_types)
    prior = priors.dalle_pytorch(
        package,
        shape,
        like.device,
        cached=set(recipe.attn_types) == {"full"},
        filter_thres=recipe.filter_thres,
        **options,
    )
    optimizer = torch.optim.Adam(prior.network.parameters(), lr=recipe.learning_rate)
    parameters = sum(p.numel() for p in prior.network.parameters())
    progress = Progress("DALLE-pytorch 1.6.6", parameters, recipe.batch_size, like.device)
    data.batch_size = recipe.batch_size

    @torch.inference_mode()
    def draw(captions: list[str]) -> Tensor:
        tokens = prior.draw(data.tokenizer.encode(captions).to(like.device))
        return data.image_tokenizer.decode(tokens.unflatten(1, (shape.grid, shape.grid)))

    clock, steps = Clock(), 0
    clock.run()
    while len(progress.moments) < len(like.moments):
        for batch in data.train_dataloader():
            text, image = (batch[name].to(like.device) for name in ("text", "image_tokens"))
            with torch.autocast(like.device.type, torch.bfloat16, enabled=recipe.bf16):
                loss = prior.loss(text, image)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(prior.network.parameters(), recipe.clip_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
            if clock.seconds >= like.moments[len(progress.moments)]["seconds"]:
                clock.stop()
                progress.record(steps, clock.seconds, examine(draw))
                if len(progress.moments) == len(like.moments):
                    break
                clock.run()
    return progress


def print_tables(trained: list[Progress]) -> None:
    """Prints the measurements, one table per split."""
    alignments = [
        result
        for progress in trained
        for moment in progress.moments
        for result in moment["alignment"]
    ]
    kinds = sorted({result["captions"] for result in alignments})
    sizes = ", ".join(
        f"{prior.name} {prior.parameters / 1e6:.2f} M parameters" for prior in trained
    )
    note = f"single samples at temperature 1, with half of the 95 % interval; {sizes}"
    for split in dict.fromkeys(result["split"] for result in alignments):
        rows = []
        for progress in trained:
            for moment in progress.moments:
                minutes, steps = f"{moment['seconds'] / 60:.1f}", str(moment["steps"])
                in_split = [result for result in moment["alignment"] if result["split"] == split]
                shares = {result["captions"]: with_spread(result) for result in in_split}
                rows.append([progress.name, minutes, steps, *(shares.get(k, "") for k in kinds)])
        title = f"Alignment after equal training time, {split}"
        timing.print_table(title, ["prior", "minutes", "steps", *kinds], rows, note)


def with_spread(result: dict[str, Any]) -> str:
    """Returns a share with half of its interval."""
    low, high = result["interval"]
    return f"{result['share']:.3f} ±{(high - low) / 2:.3f}"


def lines(trained: list[Progress]) -> dict[str, list[tuple[float, ...]]]:
    """Returns points (minutes, share, low, high) by prior, split and kind of caption."""
    points = defaultdict(list)
    for progress in trained:
        for moment in progress.moments:
            for result in moment["alignment"]:
                name = f"{progress.name}: {result['split']}, {result['captions']}"
                points[name].append((moment["seconds"] / 60, result["share"], *result["interval"]))
    return points


def main() -> None:
    settings, overrides = command_line.parse_known(DEFAULTS, __doc__)
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    app.ignore_warnings()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    overrides += training.dvae_settings(settings.dvae, overrides)
    steps = steps_in(
        settings.minutes * 60,
        lambda steps: configuration(overrides, steps, moments=0),
        settings.timed_steps,
    )
    steps = max(steps // settings.moments, 1) * settings.moments  # the last moment is the end
    config = configuration(overrides, steps, settings.moments)
    data = read_data(config)
    examine = AlignmentTest(data, settings.splits, settings.captions)
    trained = [train_ours(config, data, examine)]
    dalle_pytorch = peers.load("dalle_pytorch")
    if dalle_pytorch is not None:
        peer = train_peer(dalle_pytorch, config, settings.peer, data, examine, trained[0])
        trained.append(peer)
    print_tables(trained)
    image = Path(settings.out).with_suffix(".png")
    plot_lines(
        lines(trained), image, x_label="minutes of training", y_label="share of matching images"
    )
    print(f"Curves: {image}")
    timing.write(
        settings.out,
        results=[{**vars(prior), "device": str(prior.device)} for prior in trained],
        settings=OmegaConf.to_container(settings),
        overrides=overrides,
        config=OmegaConf.to_container(config, resolve=True),
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
