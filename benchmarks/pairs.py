"""Captioned pictures of nothing in particular, as files in the forms that data comes in."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset
from PIL import Image

FORMATS = {"jpg": "JPEG", "png": "PNG"}


def pictures(count: int, size: int, kind: str, seed: int = 0) -> Iterator[tuple[bytes, str]]:
    """Encoded pictures of size x size, smooth with some grain as photographs are, with captions.

    Args:
        kind: a key of `FORMATS`.
    """
    numbers = np.random.default_rng(seed)
    for number in range(count):
        smooth = Image.fromarray(numbers.integers(256, size=(8, 8, 3), dtype=np.uint8))
        pixels = np.asarray(smooth.resize((size, size), Image.Resampling.BICUBIC), dtype=float)
        grain = numbers.normal(scale=4, size=(size, size, 1))
        picture = Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8))
        file = io.BytesIO()
        picture.save(file, FORMATS[kind], quality=90)
        yield file.getvalue(), f"picture number {number} of {count}"


def keep_copies_in(folder: Path) -> None:
    """Where `datasets` puts its copies of what it reads, so that they go with the pictures."""
    datasets.config.HF_DATASETS_CACHE = folder
    datasets.disable_progress_bars()


def write_folder(folder: Path, kind: str, pairs: Iterator[tuple[bytes, str]]) -> Path:
    """A picture and a .txt for each pair."""
    folder.mkdir(parents=True)
    for number, (picture, caption) in enumerate(pairs):
        (folder / f"{number:06}.{kind}").write_bytes(picture)
        (folder / f"{number:06}.txt").write_text(caption)
    return folder


def write_parquet(folder: Path, kind: str, pairs: Iterator[tuple[bytes, str]]) -> Path:
    """One file with the columns `image` and `caption`."""
    folder.mkdir(parents=True)
    images, captions = zip(*pairs, strict=True)
    records = [{"bytes": image, "path": None} for image in images]
    Dataset.from_dict({"image": records, "caption": captions}).to_parquet(folder / "pairs.parquet")
    return folder


def write_shards(folder: Path, kind: str, pairs: Iterator[tuple[bytes, str]]) -> Path:
    """Tar files of up to 1,000 pairs."""
    folder.mkdir(parents=True)
    for number, (picture, caption) in enumerate(pairs):
        with tarfile.open(folder / f"{number // 1000:04}.tar", "a") as shard:
            for ending, content in ((kind, picture), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{number:06}.{ending}")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
    return folder


WRITERS = {"folder": write_folder, "parquet": write_parquet, "webdataset": write_shards}
