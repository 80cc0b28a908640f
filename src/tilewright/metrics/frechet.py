"""The Fréchet distance between two folders of pictures.

clean-fid does the work: its resize, its loop over the files, its distance. Evaluation and the
callback in training both go through PNG files, so the same pictures give the same figure.
"""

import contextlib
import functools
import hashlib
import io
import logging
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cleanfid import fid
from cleanfid.resize import make_resizer
from cleanfid.utils import EXTENSIONS
from PIL import Image
from scipy.linalg import LinAlgWarning
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from tilewright.errors import UserError
from tilewright.metrics.extractors import Extractor

logger = logging.getLogger(__name__)

# clean-fid's names for a library and a filter; a resize keeps the fractions it computes.
RESIZES = {"clean": ("PIL", "bicubic"), "legacy_pytorch": ("PyTorch", "bilinear")}
SUFFIXES = {f".{extension.lower()}" for extension in EXTENSIONS} - {".npy"}


@dataclass(frozen=True, eq=False)
class FrechetStatistics:
    """A Gaussian fitted to the features of `count` pictures: `mu [D]`, `sigma [D, D]`."""

    mu: np.ndarray
    sigma: np.ndarray
    count: int


def frechet_name(extractor: Extractor) -> str:
    """What the distance on `extractor` is called: `fid` on Inception, and on nothing else."""
    return "fid" if extractor.name == "inception" else f"fd_{extractor.name}"


def frechet_distance(real: FrechetStatistics, generated: FrechetStatistics) -> float:
    """clean-fid's Fréchet distance, a square: |mu - mu'|² + tr(S + S' - 2 (S S')^½).

    Rounding may leave that of two equal sets a few thousandths off zero, on either side.
    """
    _warn_if_few(real.count, generated.count, len(real.mu))
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        # clean-fid calls scipy's sqrtm with an argument that scipy 1.18 drops: hence our pin. And
        # with few images the matrix is singular, which is what our own warning is about.
        warnings.filterwarnings("ignore", message=".*`disp`", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message="Matrix is singular", category=LinAlgWarning)
        distance = fid.frechet_distance(real.mu, real.sigma, generated.mu, generated.sigma)
    if printed.getvalue():
        logger.info("clean-fid: %s", printed.getvalue().strip())
    return float(distance)


def folder_statistics(
    folder: Path | str,
    extractor: Extractor,
    resize: str = "clean",
    batch_size: int = 32,
    cache: Path | str | None = None,
) -> FrechetStatistics:
    """The statistics of all pictures in `folder` and the folders below it.

    Args:
        folder: pictures of any size, in any format that clean-fid reads.
        extractor: the network; pictures are resized to `extractor.size` before it.
        resize: `clean` (bicubic, antialiased) or `legacy_pytorch` (bilinear, not antialiased: as in
            FIDs of before clean-fid, for comparison with them only).
        batch_size: pictures per call of the network; the figure depends on it by rounding only.
        cache: a folder that keeps the statistics; they are found again while the bytes of the
            pictures, the network and the resize are the same.

    Raises `UserError` for an unknown resize, a picture that cannot be read, and fewer than two.
    """
    if resize not in RESIZES:
        raise UserError(f"unknown resize {resize!r}: choose one of {', '.join(RESIZES)}")
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(files) < 2:
        raise UserError(
            f"{folder} holds {len(files)} pictures: a Fréchet distance takes two or more"
        )
    if cache is None:
        return _statistics(files, extractor, resize, batch_size)
    kept = Path(cache) / f"{_key(files, extractor, resize)}.npz"
    if kept.exists():
        with np.load(kept) as arrays:
            return FrechetStatistics(arrays["mu"], arrays["sigma"], int(arrays["count"]))
    statistics = _statistics(files, extractor, resize, batch_size)
    kept.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and moved, so that another process never reads half a file.
    part = kept.with_suffix(f".{os.getpid()}.npz")
    np.savez(part, mu=statistics.mu, sigma=statistics.sigma, count=statistics.count)
    part.replace(kept)
    return statistics


def save_images(images: Iterable[Tensor | Image.Image], folder: Path | str) -> int:
    """Write pictures to `folder` as `00000.png`, `00001.png`, ...; returns how many.

    Args:
        images: batches of float RGB `[B, 3, H, W]` in [0, 1], rounded to the nearest of 256
            levels, or PIL pictures, written as RGB; the two may be mixed.
        folder: made if need be. It must hold no pictures yet, for those would be counted as ours.

    Raises `UserError` if it does, and `ValueError` for a tensor of another shape or type.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(path.suffix.lower() in SUFFIXES for path in folder.rglob("*")):
        raise UserError(f"{folder} already holds pictures: empty it, or name another folder")
    count = 0
    for item in images:
        for picture in [item] if isinstance(item, Image.Image) else _pictures(item):
            picture.convert("RGB").save(folder / f"{count:05d}.png")
            count += 1
    return count


def _pictures(images: Tensor) -> list[Image.Image]:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"want float [B, 3, H, W], got {images.dtype} {list(images.shape)}")
    levels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    return [to_pil_image(image) for image in levels]


def _statistics(
    files: list[Path], extractor: Extractor, resize: str, batch_size: int
) -> FrechetStatistics:
    library, kernel = RESIZES[resize]
    size = (extractor.size, extractor.size)
    with (
        # In the middle of a training: its loader's random numbers stay its own, and so does its
        # precision, whatever the strategy has switched on.
        torch.random.fork_rng(devices=[]),
        torch.autocast(extractor.device.type, enabled=False),
    ):
        try:
            features = fid.get_files_features(
                [str(path) for path in files],
                extractor.network,
                num_workers=0,
                batch_size=batch_size,
                device=extractor.device,
                custom_fn_resize=make_resizer(library, False, kernel, size),
                verbose=False,
            )
        except OSError as error:
            raise UserError(f"a picture in {files[0].parent} cannot be read: {error}") from error
    # As in clean-fid's fid_from_feats, so that the figures agree to the last digit.
    mu, sigma = np.mean(features, axis=0), np.cov(features, rowvar=False)
    return FrechetStatistics(mu, sigma, len(files))


def _key(files: list[Path], extractor: Extractor, resize: str) -> str:
    """Names the statistics of these bytes, whatever the files and their folder are called."""
    key = hashlib.sha256(f"{extractor.name} {extractor.digest} {extractor.size} {resize}".encode())
    for path in files:
        with path.open("rb") as file:
            key.update(hashlib.file_digest(file, "sha256").digest())
    return key.hexdigest()[:24]


@functools.cache  # once for each pair of counts: a callback asks every few hundred steps
def _warn_if_few(real: int, generated: int, dimension: int) -> None:
    if min(real, generated) < dimension:
        logger.warning(
            "Fréchet distance on %d real and %d generated images, fewer than the %d features: the "
            "figure is biased upwards; compare it only with figures on equally many images",
            real,
            generated,
            dimension,
        )
