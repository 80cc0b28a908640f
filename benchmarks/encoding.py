"""Speed of encoding a data set to image tokens, by so many processes, against a plain loop.

Ours is what `python src/encode.py processes=N` does: processes that start, share out the work by
shards and write them to disk. The plain loop is `network.encode` over a torch DataLoader that
opens the same pictures with Pillow, and keeps the tokens in memory. The dVAE has the paper's parts
in the size of `model=dvae_small`, or another's, and weights that nothing has trained.

    python benchmarks/encoding.py [pictures=16400] [processes=[1,2]] [any setting=value]
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
from tilewright.data.encoding import encode
from tilewright.data.transforms import CenterCrop

DEFAULTS = {
    "model": "dvae_small",
    "pictures": 16400,  # two files of 8192 rows of tokens, which are what processes share out
    "kind": "png",  # or jpg
    "image_size": 32,
    "processes": [1, 2],
    "rounds": 3,
    "warmup": 0,
    "out": "logs/benchmarks/encoding.json",
}
SEED = 0


def save_dvae(folder: Path, settings: DictConfig) -> Path:
    """An untrained dVAE in a folder of its own."""
    size = f"data.image_size={settings.image_size}"
    config = training.configuration(["stage=dvae", f"model={settings.model}", size])
    OmegaConf.resolve(config.model)
    config.choices = {}
    weights = instantiate(config.model.network).state_dict()
    runs.save_network(folder, config, weights)
    return folder


def plain_loop(pictures: Path, dvae: Path, image_size: int, device: str) -> torch.Tensor:
    """Image tokens of all pictures, as one would make them in a few lines."""
    network = runs.load_network(dvae, device)
    rows = PlainParquet(pictures, Plain(CenterCrop(image_size)))
    loader = DataLoader(rows, batch_size=64)
    with torch.inference_mode():
        return torch.cat([network.encode(images.to(device)).cpu() for images, _ in loader])


def ours(
    pictures: Path, dvae: Path, image_size: int, device: str, cache: Path, processes: int
) -> None:
    """The configuration of `src/encode.py`, resolved, and what it does with it."""
    shutil.rmtree(cache, ignore_errors=True)
    crop = {"_target_": "tilewright.data.transforms.CenterCrop", "size": image_size}
    source = {"_target_": "tilewright.data.sources.ParquetSource", "path": str(pictures)}
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
    for _split, _codes in encode(config):
        pass
    torch.set_num_threads(threads)  # it takes its share of them


def main() -> None:
    settings = command_line.read_own(DEFAULTS, __doc__)
    device = timing.prepare(None, SEED)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs.keep_copies_in(folder / "copies")
        made = pairs.pictures(settings.pictures, settings.image_size, settings.kind)
        files = pairs.write_parquet(folder / "pictures", settings.kind, made)
        task = (files, save_dvae(folder / "dvae", settings), settings.image_size, device)
        steps = {"a plain loop": partial(plain_loop, *task)} | {
            f"ours, processes={count}": partial(ours, *task, folder / "tokens", count)
            for count in settings.processes
        }
        speeds = timing.compare(steps, settings.rounds, settings.warmup)
    timing.show_speeds(f"Encoding {settings.pictures} pictures: against a plain loop", speeds)
    for speed in speeds:
        rate = settings.pictures / np.median(speed.seconds)
        print(f"{speed.name}: {rate:,.0f} images a second, its start included")
    timing.write(settings.out, speeds=speeds, settings=OmegaConf.to_container(settings))


if __name__ == "__main__":
    main()
