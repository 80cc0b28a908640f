"""Speed of encoding a data set to image tokens with several processes, against a plain loop.

Ours is `python src/encode.py processes=N`: processes start, divide the shards and write tokens to
disk. The plain loop is `network.encode` over a torch DataLoader that opens the same images with
Pillow and keeps the tokens in memory. The dVAE has random weights.

    python benchmarks/encoding.py [images=16400] [processes=[1,2]] [any setting=value]
"""

import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pairs
import settings as command_line
import timing
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from reading import Plain, PlainParquet
from torch.utils.data import DataLoader

import training
from tilewright import runs
from tilewright.data.encode_parallel import encode_in_parallel
from tilewright.data.transforms import CenterCrop

DEFAULTS = {
    "model": "dvae_small",
    "images": 16400,  # two shards of 8192 rows, which the processes divide
    "kind": "png",  # or jpg
    "image_size": 32,
    "processes": [1, 2],
    "rounds": 3,
    "warmup": 0,
    "out": "logs/benchmarks/encoding.json",
}
SEED = 0


def save_dvae(folder: Path, settings: DictConfig) -> Path:
    """Saves a dVAE with random weights to a folder."""
    size = f"data.image_size={settings.image_size}"
    config = training.configuration(["stage=dvae", f"model={settings.model}", size])
    OmegaConf.resolve(config.model)
    config.choices = {}
    weights = instantiate(config.model.network).state_dict()
    runs.save_network(folder, config, weights)
    return folder


def plain_loop(files: Path, dvae: Path, image_size: int, device: str) -> torch.Tensor:
    """Returns the image tokens of all images, without any checks."""
    network = runs.load_network(dvae, device)
    rows = PlainParquet(files, Plain(CenterCrop(image_size)))
    loader = DataLoader(rows, batch_size=64)
    with torch.inference_mode():
        return torch.cat([network.encode(images.to(device)).cpu() for images, _ in loader])


def ours(
    files: Path, dvae: Path, image_size: int, device: str, cache: Path, processes: int
) -> None:
    """Encodes as `src/encode.py` does, from an empty cache."""
    shutil.rmtree(cache, ignore_errors=True)
    crop = {"_target_": "tilewright.data.transforms.CenterCrop", "size": image_size}
    source = {"_target_": "tilewright.data.sources.ParquetSource", "path": str(files)}
    network = {"_target_": "tilewright.runs.load_network", "run": str(dvae), "device": device}
    config: dict[str, Any] = {
        "processes": processes,
        "device": device,
        "splits": ["train"],
        "data": {
            "_target_": "tilewright.data.CaptionedImages",
            "source": {**source, "validation_fraction": 1e-4},
            "image_size": image_size,
            "batch_size": 64,
            "train_transform": crop,
            "eval_transform": crop,
            "image_tokenizer": network,
            "cache": str(cache),
        },
    }
    threads = torch.get_num_threads()
    for _ in encode_in_parallel(config):
        pass
    torch.set_num_threads(threads)  # encode() lowers them


def main() -> None:
    settings = command_line.parse(DEFAULTS, __doc__)
    device = timing.prepare(None, SEED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs.set_datasets_cache(folder / "copies")
        captioned = pairs.make_pairs(settings.images, settings.image_size, settings.kind)
        files = pairs.write_parquet(folder / "images", settings.kind, captioned)
        task = (files, save_dvae(folder / "dvae", settings), settings.image_size, device)
        steps = {"a plain loop": partial(plain_loop, *task)} | {
            f"ours, processes={count}": partial(ours, *task, folder / "tokens", count)
            for count in settings.processes
        }
        speeds = timing.compare(steps, settings.rounds, settings.warmup)
    timing.print_speeds(f"Encoding {settings.images} images: against a plain loop", speeds)
    for speed in speeds:
        rate = settings.images / np.median(speed.seconds)
        print(f"{speed.name}: {rate:,.0f} images a second, startup included")
    timing.write(settings.out, speeds=speeds, settings=OmegaConf.to_container(settings))


if __name__ == "__main__":
    main()
