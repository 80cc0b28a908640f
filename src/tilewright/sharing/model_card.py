"""The card of a model that is shared: README.md with the Hub's front matter."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from omegaconf import DictConfig, OmegaConf

from tilewright import runs
from tilewright.runs import environment, listing

PAPER = "[Ramesh et al. 2021](https://arxiv.org/abs/2102.12092)"
TAGS = {
    "prior": ["dall-e", "discrete-vae"],
    "dvae": ["dall-e", "discrete-vae", "image-tokenizer"],
    "ranker": ["contrastive"],
}
USE = {
    "prior": """\
from tilewright import TextToImage

model = TextToImage.from_pretrained({name})
pictures = model([{caption}], n=4)[0]""",
    "dvae": """\
from tilewright.runs import load_network

dvae = load_network({name})
image_tokens = dvae.encode(images)  # [B, 3, {size}, {size}], float RGB in [0, 1]""",
    "ranker": """\
from tilewright.reranking import ContrastiveRanker

ranker = ContrastiveRanker.from_run({name})
pictures = model([caption], n=4, best_of=64, ranker=ranker)[0]""",
}
UNSAID = {"metric", "value", "split", "images", "run", "evaluation", "extractor_digest"}


def card(folder: Path, run: Path, name: str, license: str, samples: dict[str, Any]) -> str:
    """What is written on the card of an exported model.

    Args:
        folder: of the model; run: what it was made of, which has the figures.
        samples: the picture's `file`, and of a prior's the `captions`, `n` and `seed`.
    """
    config = runs.load_config(folder)
    stage = config.stage
    front = ModelCardData(
        library_name="tilewright",
        license=license,
        pipeline_tag="text-to-image" if stage == "prior" else None,
        tags=TAGS[stage],
    ).to_yaml()
    caption = samples.get("captions", ["a caption"])[0]
    quoted = {"name": json.dumps(name), "caption": json.dumps(caption, ensure_ascii=False)}
    use = USE[stage].format(**quoted, size=runs.image_size(folder))
    parts = [
        f"---\n{front}\n---",
        f"# {name.rpartition('/')[2]}",
        _what(folder, config),
        *_samples(samples),
        f"## Use\n```python\n{use}\n```",
    ]
    if (folder / runs.RANKER).is_dir():
        parts.append("With `best_of=64` a ranker that comes with it keeps the best of 64.")
    parts += [
        "All of it is safetensors and JSON; nothing is unpickled.",
        f"## Training\n{_training(config, run)}",
        f"## Figures\n{_figures(run)}",
    ]
    return "\n\n".join(parts) + "\n"


def _what(folder: Path, config: DictConfig) -> str:
    """What kind of model it is, and how large."""
    size, millions = runs.image_size(folder), _millions(folder)
    if config.stage == "ranker":
        return (
            f"A contrastive model of captions and pictures of {size}x{size}, {millions}, which "
            f"picks the best of a prior's candidates; trained with Tilewright."
        )
    if config.stage == "dvae":
        network = config.model.network
        return (
            f"The discrete VAE of a DALL-E ({PAPER}), {millions}, trained with Tilewright: "
            f"pictures of {size}x{size} to a grid of {network.grid}x{network.grid} image tokens of "
            f"{network.num_tokens}, and back."
        )
    stream = config.model.network.stream
    return (
        f"A DALL-E ({PAPER}) trained with Tilewright: captions in, pictures of {size}x{size} out. "
        f"Its prior, {millions}, reads up to {stream.text_length} text tokens and draws a grid of "
        f"{stream.grid}x{stream.grid} image tokens of {stream.image_vocab}, of which its dVAE, "
        f"{_millions(folder / runs.DVAE)}, makes the picture."
    )


def _millions(folder: Path) -> str:
    weights = runs.load_weights(folder).values()
    return f"{sum(value.numel() for value in weights) / 1e6:.3g} million parameters"


def _samples(samples: dict[str, Any]) -> list[str]:
    if not samples:
        return []
    said = "Originals in rows, each over that of its reconstructions."
    if "captions" in samples:
        said = (
            f"{samples['n']} pictures for each caption, none chosen: `model(captions, "
            f"n={samples['n']}, seed={samples['seed']})` draws them again."
        )
    return [f"![Samples]({samples['file']})", said]


def _training(config: DictConfig, run: Path) -> str:
    """What it was trained on and how; no paths, which are nobody's business."""
    trained = runs.load_config(run)
    said = [f"- data: {config.choices.get('data', 'not on record')}"]
    if config.steps:
        said.append(f"- updates: {config.steps}")
    batch = OmegaConf.select(trained, "data.batch_size")
    if batch:
        said.append(f"- pairs in a batch: {batch}")
    if trained.get("init"):
        said.append(f"- began with the weights of: {Path(trained.init).name}")
    settings = [text for text in trained.get("overrides", []) if "/" not in text]
    if settings:
        said.append(f"- settings: `{' '.join(settings)}`")
    made = environment.load(run)
    if made:
        versions = made[-1].get("packages", {})
        named = (f"{name} {versions[name]}" for name in ("tilewright", "torch") if name in versions)
        said.append(f"- with: {', '.join(named)}")
    return "\n".join(said)


def _figures(run: Path) -> str:
    """The figures of a run's evaluations, as a table."""
    results = listing.read(run).results
    if not results:
        return "None have been measured."
    rows = ["| metric | value | split | pictures | settings |", "|---|---|---|---|---|"]
    for row in results:
        value = f"{row['value']:.4g}" if isinstance(row["value"], float) else row["value"]
        settings = " ".join(
            f"{key}={_short(setting)}"
            for key, setting in row.items()
            if key not in UNSAID and setting is not None and not isinstance(setting, list)
        )
        rows.append(
            f"| {row['metric']} | {value} | {row['split']} | {row['images']} | {settings} |"
        )
    return "\n".join(rows)


def _short(setting: Any) -> Any:
    """A setting, of a path its last part alone."""
    return Path(setting).name if isinstance(setting, str) and "/" in setting else setting
