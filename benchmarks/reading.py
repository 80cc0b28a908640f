"""Speed of reading captioned images, against a plain torch DataLoader over the same files.

Both yield shuffled batches of images, randomly cropped for the dVAE, with captions. The plain
loaders open files with Pillow and crop with torch's global generator. They check nothing and cannot
resume. They hold a parquet file in memory and read tar files in order. Ours makes each row
reproducible and skips unreadable images.

    python benchmarks/reading.py [images=1000] [size=256] [workers=0] [any setting=value]
"""

import io
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pairs
import pyarrow.parquet
import settings as command_line
import timing
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

from tilewright.data import CaptionedImages
from tilewright.data.sources import ParquetSource
from tilewright.data.sources.folder import FolderSource
from tilewright.data.sources.webdataset import WebDatasetSource
from tilewright.data.transforms import CenterCrop, StageOneCrop

DEFAULTS = {
    "sources": ["folder", "parquet", "webdataset"],
    "images": 1000,
    "kind": "jpg",  # or png
    "size": 256,  # of the files
    "image_size": 64,  # of the batches
    "batch_size": 32,
    "workers": 0,
    "rounds": 5,
    "warmup": 1,
    "threads": None,  # null: torch's default
    "out": "logs/benchmarks/reading.json",
}
SEED = 0
SOURCES = {"folder": FolderSource, "parquet": ParquetSource, "webdataset": WebDatasetSource}


class Plain:
    """Decodes and crops an image, without checks."""

    def __init__(self, crop: Callable[[Image.Image], Image.Image]):
        self.crop = crop

    def __call__(self, file: Any, caption: str) -> tuple[torch.Tensor, str]:
        image = np.array(self.crop(Image.open(file).convert("RGB")))
        return torch.from_numpy(image).permute(2, 0, 1).float() / 255, caption


class PlainFolder(Dataset):
    def __init__(self, folder: Path, read: Plain):
        self.files = sorted(file for file in folder.iterdir() if file.suffix != ".txt")
        self.captions = [file.with_suffix(".txt").read_text() for file in self.files]
        self.read = read

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, str]:
        return self.read(self.files[row], self.captions[row])


class PlainParquet(Dataset):
    def __init__(self, folder: Path, read: Plain):
        self.rows = pyarrow.parquet.read_table(folder).to_pylist()
        self.read = read

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, str]:
        record = self.rows[row]
        return self.read(io.BytesIO(record["image"]["bytes"]), record["caption"])


class PlainShards(IterableDataset):
    def __init__(self, folder: Path, read: Plain):
        self.files = sorted(folder.iterdir())
        self.read = read

    def __iter__(self) -> Iterator[tuple[torch.Tensor, str]]:
        worker = torch.utils.data.get_worker_info()
        files = self.files if worker is None else self.files[worker.id :: worker.num_workers]
        for file in files:
            with tarfile.open(file) as shard:
                members = (shard.extractfile(member).read() for member in shard)
                for image, caption in zip(members, members, strict=True):
                    yield self.read(io.BytesIO(image), caption.decode())


PLAIN = {"folder": PlainFolder, "parquet": PlainParquet, "webdataset": PlainShards}


def plain(source: str, folder: Path, settings: DictConfig) -> DataLoader:
    """Returns the plain DataLoader of these files."""
    rows = PLAIN[source](folder, Plain(StageOneCrop(settings.image_size)))
    return DataLoader(
        rows,
        batch_size=settings.batch_size,
        shuffle=source != "webdataset",
        drop_last=True,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
    )


def ours(source: str, folder: Path, settings: DictConfig) -> DataLoader:
    """Returns the DataLoader of a training, which is endless."""
    data = CaptionedImages(
        SOURCES[source](str(folder), validation_fraction=1e-3),
        settings.image_size,
        settings.batch_size,
        train_transform=StageOneCrop(settings.image_size),
        eval_transform=CenterCrop(settings.image_size),
        num_workers=settings.workers,
    )
    return data.train_dataloader()


def measure(source: str, folder: Path, settings: DictConfig) -> list[timing.Speed]:
    """Prints and returns the speeds for one file format."""
    captioned = pairs.make_pairs(settings.images, settings.size, settings.kind)
    folder = pairs.WRITERS[source](folder / source, settings.kind, captioned)
    loaders = {
        "a plain DataLoader": plain(source, folder, settings),
        "ours": ours(source, folder, settings),
    }
    batches = settings.images // settings.batch_size - 1  # ours has fewer rows: some are held out
    steps = {
        name: partial(lambda loader: deque(islice(loader, batches), maxlen=0), loader)
        for name, loader in loaders.items()
    }
    speeds = timing.compare(steps, settings.rounds, settings.warmup)
    timing.print_speeds(f"Reading, {source}: against a plain DataLoader", speeds)
    for speed in speeds:
        rate = batches * settings.batch_size / np.median(speed.seconds)
        print(f"{source}, {speed.name}: {rate:,.0f} images a second")
    return speeds


def main() -> None:
    settings = command_line.parse(DEFAULTS, __doc__)
    timing.prepare(settings.threads, SEED)
    with tempfile.TemporaryDirectory() as folder:
        pairs.set_datasets_cache(Path(folder) / "copies")
        speeds = {source: measure(source, Path(folder), settings) for source in settings.sources}
    timing.write(settings.out, speeds=speeds, settings=OmegaConf.to_container(settings))


if __name__ == "__main__":
    main()
