"""Synthetic captioned images, written in the file formats that the data sources read."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset
from PIL import Image

FORMATS = {"jpg": "JPEG", "png": "PNG"}


def make_pairs(count: int, size: int, kind: str, seed: int = 0) -> Iterator[tuple[bytes, str]]:
    """Yields encoded images of size x size with captions; they are smooth with grain, as photos.

    Args:
        kind: a key of `FORMATS`.
    """
    rng = np.random.default_rng(seed)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(256, size=(8, 8, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=float)
        grain = rng.normal(scale=4, size=(size, size, 1))
        image = Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))
        file = io.BytesIO()
        image.save(file, FORMATS[kind], quality=90)
        yield file.getvalue(), f"picture number {index} of {count}"


def set_datasets_cache(folder: Path) -> None:
    """Makes `datasets` cache in this folder, so that its copies are deleted with the images."""
    datasets.config.HF_DATASETS_CACHE = folder
    datasets.disable_progress_bars()


def write_folder(folder: Path, kind: str, pairs: Iterator[tuple[bytes, str]]) -> Path:
    """Writes an image file and a .txt file per pair."""
    folder.mkdir(parents=True)
    for index, (image, caption) in enumerate(pairs):
        (folder / f"{index:06}.{kind}").write_bytes(image)
        (folder / f"{index:06}.txt").write_text(caption)
    return folder


def write_parquet(folder: Path, kind: str, pairs: Iterator[tuple[bytes, str]]) -> Path:
    """Writes one parquet file with the columns `image` and `caption`."""
    folder.mkdir(parents=True)
    images, captions = zip(*pairs, strict=True)
    records = [{"bytes": image, "path": None} for image in images]
    Dataset.from_dict({"image": records, "caption": captions}).to_parquet(folder / "pairs.parquet")
    return folder


def write_shards(folder: Path, kind: str, pairs: Iterator[tuple[bytes, str]]) -> Path:
    """Writes tar shards of up to 1,000 pairs."""
    folder.mkdir(parents=True)
    for index, (image, caption) in enumerate(pairs):
        with tarfile.open(folder / f"{index // 1000:04}.tar", "a") as shard:
            for suffix, content in ((kind, image), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{index:06}.{suffix}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    return folder


WRITERS = {"folder": write_folder, "parquet": write_parquet, "webdataset": write_shards}
