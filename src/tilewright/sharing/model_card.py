"""Model card of an exported model: README.md with the Hub's front matter."""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, model_info
from omegaconf import DictConfig, OmegaConf

from tilewright import runs
from tilewright.checks import format_value
from tilewright.runs import environment, listing, path_keys

PAPER = "[Ramesh et al. 2021](https://arxiv.org/abs/2102.12092)"
TAGS = {
    "prior": ["dall-e", "discrete-vae"],
    "dvae": ["dall-e", "discrete-vae", "image-tokenizer"],
    "ranker": ["contrastive"],
}
USAGE = {
    "prior": """\
from tilewright import TextToImage

model = TextToImage.from_pretrained({name})
images = model([{caption}], n=4)[0]  # PIL images""",
    "dvae": """\
from tilewright.runs import load_network

dvae = load_network({name})  # the folder of this model
image_tokens = dvae.encode(images)  # [B, 3, {size}, {size}], float RGB in [0, 1]""",
    "ranker": """\
from tilewright.reranking import ContrastiveRanker

ranker = ContrastiveRanker.from_run({name})  # the folder of this model
images = model([caption], n=4, best_of=64, ranker=ranker)[0]  # model: a TextToImage""",
}
COLUMNS = ("metric", "value", "split", "images")  # of the table of results
HIDDEN = {*COLUMNS, "run", "evaluation", "extractor_digest"}  # not listed as settings


@dataclass(frozen=True)
class Samples:
    """Image file on a card. A prior's samples have captions, a dVAE's reconstructions have none.

    Args:
        file: name of the image file.
        captions: captions of the samples.
        n: images per caption.
        seed: seed of the samples.
    """

    file: str
    captions: Sequence[str] = ()
    n: int = 0
    seed: int = 0


def model_card(
    folder: Path,
    run: Path,
    name: str,
    license: str,
    samples: Samples | None,
    base: str | None = None,
) -> str:
    """Returns the text of an exported model's README.md.

    Args:
        folder: folder of the model.
        run: the run it was exported from, which holds the results.
        name: name of the model, such as `someone/name`.
        license: identifier of the license on the Hub.
        samples: image for the card.
        base: name of an adapter's base on the Hub.
    """
    config = runs.load_config(folder)
    sections = [
        _front_matter(config, license, base),
        f"# {name.rpartition('/')[2]}",
        _description(folder, config),
        *_origin(folder, config, runs.load_config(run)),
        *_adapters(config, base),
        *_text_encoder(config),
        *_samples(samples),
        _usage(folder, config.stage, name, samples),
        f"## Training\n{_training(config, run)}",
        f"## Results\n{_results(run)}",
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(config: DictConfig, license: str, base: str | None) -> str:
    stage, family = config.stage, config.choices.get("family")
    data = ModelCardData(
        library_name="tilewright",
        license=license,
        base_model=base,
        pipeline_tag="text-to-image" if stage == "prior" else None,
        tags=["image-tokenizer"] * (stage == "dvae") if family else TAGS[stage],
    )
    return f"---\n{data.to_yaml()}\n---"


def _description(folder: Path, config: DictConfig) -> str:
    """Describes the kind of model and its size."""
    side = runs.image_size(folder)
    pixels = f"{side}x{side} pixels"
    parameters = _count_parameters(folder)
    if config.stage == "ranker":
        return (
            f"A contrastive model of captions and images of {pixels}, with {parameters}. It picks "
            "the best of the images that a prior generates. Trained with Tilewright."
        )
    family = config.choices.get("family")
    if config.stage == "dvae":
        network = config.model.network
        kind = "An image tokenizer" if family else f"The discrete VAE of a DALL-E ({PAPER})"
        return (
            f"{kind}, with {parameters}. It encodes an image of {pixels} as a grid of "
            f"{network.grid}x{network.grid} image tokens from a codebook of {network.num_tokens}, "
            "and decodes them."
        )
    stream = config.model.network.stream
    kind = "A text-to-image model" if family else f"A DALL-E ({PAPER})"
    return (
        f"{kind} that generates images of {pixels} from captions. Its prior has {parameters}. It "
        f"reads up to {stream.text_length} text tokens and generates a grid of "
        f"{stream.grid}x{stream.grid} image tokens from a codebook of {stream.image_vocab}. Its "
        f"image tokenizer, with {_count_parameters(runs.dvae_folder(folder))}, decodes them to "
        "pixels."
    )


def _origin(folder: Path, config: DictConfig, trained: DictConfig) -> list[str]:
    """Names who trained each network: Tilewright, or the authors of a converted checkpoint.

    Args:
        folder: folder of the model.
        config: its configuration.
        trained: configuration of the run, which has the adapters that the export merges.
    """
    if config.stage == "ranker":
        return []
    change = "low-rank adapters of its layers were trained" if trained.get("lora") else "fine-tuned"
    if config.stage == "dvae":
        return [_origin_of("image tokenizer", config, change)]
    dvae = runs.load_config(runs.dvae_folder(folder))
    parts = [_origin_of("prior", config, change), _origin_of("image tokenizer", dvae, "fine-tuned")]
    return [" ".join(parts)]


def _origin_of(network: str, config: DictConfig, change: str) -> str:
    family, steps = config.choices.get("family"), config.get("steps")
    if not family:
        return f"The {network} was trained with Tilewright."
    end = f"{change} with Tilewright for {steps} updates" if steps else "was not trained further"
    return f"The {network} was converted from a checkpoint of the family `{family}` and {end}."


def _adapters(config: DictConfig, base: str | None) -> list[str]:
    """Names the base of an adapter, without its folder, which is private."""
    if not config.get("base"):
        return []
    name = base or Path(config.base.path).name
    return [f"The files hold low-rank adapters. Loading them takes all other weights from {name}."]


def _count_parameters(folder: Path) -> str:
    weights = runs.load_weights(folder).values()
    return f"{sum(value.numel() for value in weights) / 1e6:.3g} million parameters"


def _text_encoder(config: DictConfig) -> list[str]:
    """Names the text encoder that the model needs, with its license."""
    if not runs.reads_features(config):
        return []
    path = Path(config.tokenizer.path).expanduser()
    is_folder = path.is_absolute() or path.is_dir()  # otherwise a name on the Hub
    license = None
    with contextlib.suppress(Exception):  # the Hub cannot be reached, or the card is broken
        if is_folder:
            license = ModelCard.load(path / "README.md").data.license
        else:
            card = model_info(config.tokenizer.path, timeout=5).card_data
            license = card and card.license
    name = path.name if is_folder else config.tokenizer.path
    return [
        f"It reads captions through the frozen text encoder `{name}` (license: "
        f"{license or 'not recorded'}), which is not part of this model. `tokenizer.path` in "
        "`config.json` names the folder or the Hub name that it is loaded from."
    ]


def _samples(samples: Samples | None) -> list[str]:
    if samples is None:
        return []
    explanation = "Each row of originals is above the row of their reconstructions."
    if samples.captions:
        call = f"model(captions, n={samples.n}, seed={samples.seed})"
        images = "1 image" if samples.n == 1 else f"{samples.n} images"
        explanation = f"{images} per caption, not selected. `{call}` reproduces them."
    return [f"![Samples]({samples.file})", explanation]


def _usage(folder: Path, stage: str, name: str, samples: Samples | None) -> str:
    caption = samples.captions[0] if samples and samples.captions else "a caption"
    code = USAGE[stage].format(
        name=json.dumps(name),
        caption=json.dumps(caption, ensure_ascii=False),
        size=runs.image_size(folder),
    )
    text = f"## Usage\n```python\n{code}\n```\n\n"
    if (folder / runs.RANKER).is_dir():
        text += "The model includes a ranker. `best_of=64` keeps the best of 64 images.\n\n"
    if stage == "prior":
        sampling = vars(runs.load_sampling(folder))
        keys = ("temperature", "top_k", "top_p", "guidance")
        values = " ".join(f"{key}={format_value(sampling[key])}" for key in keys)
        text += f"Samples are drawn with {values} unless you set `sampling=`.\n\n"
    return text + "All files are safetensors and JSON. Loading them runs no code."


def _training(config: DictConfig, run: Path) -> str:
    """Lists the data and the settings of the training, without paths, which are private."""
    trained = runs.load_config(run)
    lines = [f"- data: {config.choices.get('data', 'not recorded')}"]
    if config.steps:
        lines.append(f"- updates: {config.steps}")
    batch_size = OmegaConf.select(trained, "data.batch_size")
    if batch_size:
        lines.append(f"- batch size: {batch_size}")
    if trained.get("init"):
        lines.append(f"- initial weights: {Path(trained.init).name}")
    overrides = [text for text in trained.get("overrides", []) if not _is_private(text)]
    if overrides:
        lines.append(f"- settings: `{' '.join(overrides)}`")
    versions = _package_versions(run)
    if versions:
        lines.append(f"- packages: {', '.join(versions)}")
    return "\n".join(lines)


def _is_private(override: str) -> bool:
    """Returns True for an override with a path, or with text that may be one."""
    key, value = runs.split_override(override)
    is_path = path_keys.is_path(key) or "/" in override
    return is_path and not path_keys.is_hub_name(key, value)


def _package_versions(run: Path) -> list[str]:
    records = environment.load(run)
    packages = records[-1].get("packages", {}) if records else {}
    return [f"{name} {packages[name]}" for name in ("tilewright", "torch") if name in packages]


def _results(run: Path) -> str:
    """Tabulates the results of the run's weights, and counts those of earlier weights."""
    record = listing.read(run)
    count = record.num_earlier_results
    left_out = [f"Results of earlier weights, which are left out: {count}."] if count else []
    if not record.results:
        return " ".join(["Not evaluated.", *left_out])
    lines = [f"| {' | '.join(COLUMNS)} | settings |", "|---" * (len(COLUMNS) + 1) + "|"]
    for result in record.results:
        cells = [_format(result.get(column, "")) for column in COLUMNS]
        settings = [
            f"{key}={_without_folder(key, value)}"
            for key, value in result.items()
            if key not in HIDDEN and value is not None and not isinstance(value, list)
        ]
        lines.append(f"| {' | '.join(cells)} | {' '.join(settings)} |")
    return "\n\n".join(["\n".join(lines), *left_out])


def _format(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _without_folder(key: str, value: Any) -> Any:
    """Returns only the last part of a path, because folders are private."""
    is_path = isinstance(value, str) and "/" in value and not path_keys.is_hub_name(key, value)
    return Path(value).name if is_path else value
