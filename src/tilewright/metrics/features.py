"""Pictures to features: a folder of files, clean-fid's resize, an extractor, and a cache.

Evaluation and the callback in training both go through PNG files and this function, so the same
pictures give the same figure.
"""

import functools
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from cleanfid import fid
from cleanfid.resize import make_resizer
from cleanfid.utils import EXTENSIONS
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from tilewright.errors import UserError
from tilewright.metrics.extractors import Extractor
from tilewright.viz.images import to_picture

# clean-fid's names for a library and a filter; a resize keeps the fractions it computes.
RESIZES = {"clean": ("PIL", "bicubic"), "legacy_pytorch": ("PyTorch", "bilinear")}
SUFFIXES = {f".{extension.lower()}" for extension in EXTENSIONS} - {".npy"}


def folder_features(
    folder: Path | str,
    extractor: Extractor,
    resize: str = "clean",
    blur: float = 0,
    batch_size: int = 32,
    cache: Path | str | None = None,
) -> np.ndarray:
    """The features [N, D] of all N pictures in `folder` and the folders below it, sorted by path.

    The cache's key is the bytes of the pictures, the network, the resize and the blur. Data set,
    split and number of pictures are in the bytes already; and pictures that were drawn or rendered
    anew are never taken for those of before, as they would be under a key of names.

    Args:
        folder: pictures of any size, in any format that clean-fid reads.
        extractor: the network; pictures are resized to `extractor.size` before it.
        resize: `clean` (bicubic, antialiased) or `legacy_pytorch` (bilinear, not antialiased: as in
            FIDs of before clean-fid, for comparison with them only).
        blur: standard deviation, in the picture's own pixels, of a Gaussian filter before the
            resize; 0 is none.
        batch_size: pictures per call of the network; the figure depends on it by rounding only.
        cache: a folder that keeps features.

    Raises `UserError` for an unknown resize, a negative blur, a picture that cannot be read, and a
    folder without any.
    """
    if resize not in RESIZES:
        raise UserError(f"unknown resize {resize!r}: choose one of {', '.join(RESIZES)}")
    if blur < 0:
        raise UserError(f"blur must be 0 or more, got {blur}")
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"{folder} holds no pictures")
    if cache is None:
        return _features(files, extractor, resize, blur, batch_size)
    kept = Path(cache) / f"{_key(files, extractor, resize, blur)}.npy"
    if kept.exists():
        return np.load(kept)
    features = _features(files, extractor, resize, blur, batch_size)
    kept.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and moved, so that another process never reads half a file.
    part = kept.with_suffix(f".{os.getpid()}.npy")
    np.save(part, features)
    part.replace(kept)
    return features


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
    return [to_picture(image) for image in images]


def _features(
    files: list[Path], extractor: Extractor, resize: str, blur: float, batch_size: int
) -> np.ndarray:
    library, kernel = RESIZES[resize]
    size = (extractor.size, extractor.size)
    with (
        # In the middle of a training: its loader's random numbers stay its own, and so does its
        # precision, whatever the strategy has switched on.
        torch.random.fork_rng(devices=[]),
        torch.autocast(extractor.device.type, enabled=False),
    ):
        try:
            return fid.get_files_features(
                [str(path) for path in files],
                extractor.network,
                num_workers=0,
                batch_size=batch_size,
                device=extractor.device,
                custom_fn_resize=make_resizer(library, False, kernel, size),
                custom_image_tranform=functools.partial(_blurred, radius=blur) if blur else None,
                verbose=False,
            )
        except OSError as error:
            raise UserError(f"a picture in {files[0].parent} cannot be read: {error}") from error


def _blurred(picture: np.ndarray, radius: float) -> np.ndarray:
    """A picture [H, W, 3] of 0..255, float: what the filter leaves is not rounded."""
    return gaussian_filter(picture.astype(np.float32), sigma=(radius, radius, 0))


def _key(files: list[Path], extractor: Extractor, resize: str, blur: float) -> str:
    """Names the features of these bytes, whatever the files and their folder are called."""
    how = f"{extractor.name} {extractor.digest} {extractor.size} {resize} {float(blur)}"
    key = hashlib.sha256(how.encode())
    for path in files:
        with path.open("rb") as file:
            key.update(hashlib.file_digest(file, "sha256").digest())
    return key.hexdigest()[:24]
