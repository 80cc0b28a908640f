"""Features of the images in a folder: clean-fid's resize, a feature network, and a cache on disk.

Evaluations and the training callback both use PNG files and `folder_features`, so the same images
give the same value.
"""

import functools
import hashlib
import re
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

from tilewright.checks import check_number
from tilewright.errors import UserError
from tilewright.files import atomic_folder
from tilewright.metrics.extractors import Extractor
from tilewright.viz.images import to_pil

# resize mode: (clean-fid's library, its filter). Resized pixels are not rounded to integers.
RESIZE_MODES = {"clean": ("PIL", "bicubic"), "legacy_pytorch": ("PyTorch", "bilinear")}
IMAGE_SUFFIXES = {f".{extension.lower()}" for extension in EXTENSIONS} - {".npy"}
FEATURES_FILE = "features.npy"  # in the folder of a cache entry


class UndefinedMetric(UserError):  # noqa: N818
    """Error raised if a metric is not defined for the features of some images."""


def check_finite(*feature_sets: np.ndarray) -> None:
    """Checks that features are finite. Images with nan give features that are not.

    Raises:
        UndefinedMetric: a feature is not finite.
    """
    if not all(np.isfinite(features).all() for features in feature_sets):
        raise UndefinedMetric(
            "the features of an image are not finite: use weights from before the loss became nan"
        )


def folder_features(
    folder: Path | str,
    extractor: Extractor,
    resize: str = "clean",
    blur: float = 0,
    batch_size: int = 32,
    cache: Path | str | None = None,
) -> np.ndarray:
    """Returns the features [N, D] of all images in a folder and its subfolders.

    They are sorted by path, with numbers in numerical order: 10001.png before 100000.png.

    The cache key is a hash of the image files, the network, the resize and the blur. File names are
    not enough, because new images may have the names of old ones.

    Args:
        folder: images of any size, in any format that clean-fid reads.
        extractor: feature network; images are resized to `extractor.size`.
        resize: `clean` (bicubic, antialiased) or `legacy_pytorch` (bilinear, not antialiased). Use
            the latter only for comparison with FIDs from before clean-fid.
        blur: standard deviation of a Gaussian filter before the resize, in pixels of the original
            image. 0 disables it.
        batch_size: images per forward pass; it changes the features by rounding only.
        cache: folder that keeps the features; None computes them again.

    Raises:
        UserError: unknown resize, negative blur, unreadable image, or a folder without images.
    """
    check_resize(resize)
    check_number("blur", blur, 0)
    files = [path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    files.sort(key=_natural_order)
    if not files:
        raise UserError(f"{folder} has no images: give a folder of images")
    if cache is None:
        return _extract(files, extractor, resize, blur, batch_size)
    entry = Path(cache) / _cache_key(files, extractor, resize, blur)
    if entry.is_dir():
        return np.load(entry / FEATURES_FILE)
    features = _extract(files, extractor, resize, blur, batch_size)
    with atomic_folder(entry) as temporary:  # several processes may compute the same features
        np.save(temporary / FEATURES_FILE, features)
    return features


def check_resize(resize: str) -> None:
    """Checks the name of a resize.

    Raises:
        UserError: the name is unknown.
    """
    if resize not in RESIZE_MODES:
        raise UserError(f"resize={resize!r} is unknown: choose one of {', '.join(RESIZE_MODES)}")


def _natural_order(path: Path) -> list[str | int]:
    parts = re.split(r"(\d+)", path.as_posix())  # every second part is a number
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def save_images(images: Iterable[Tensor | Image.Image], folder: Path | str) -> int:
    """Writes images to a folder as `00000.png`, `00001.png`, ... and returns their number.

    Args:
        images: batches of float RGB [B, 3, H, W] in [0, 1], or PIL images; the two may be mixed.
            Floats are rounded to 256 levels, and PIL images become RGB.
        folder: created if it does not exist.

    Raises:
        UserError: the folder already has images.
        ValueError: a tensor has another shape or dtype.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*")):
        raise UserError(f"{folder} already has images: empty it, or choose another folder")
    count = 0
    for item in images:
        for image in [item] if isinstance(item, Image.Image) else _to_pil_images(item):
            image.convert("RGB").save(folder / f"{count:05d}.png")
            count += 1
    return count


def _to_pil_images(images: Tensor) -> list[Image.Image]:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(f"expected float [B, 3, H, W], got {images.dtype} {list(images.shape)}")
    return [to_pil(image) for image in images]


def _extract(
    files: list[Path], extractor: Extractor, resize: str, blur: float, batch_size: int
) -> np.ndarray:
    library, kernel = RESIZE_MODES[resize]
    size = (extractor.size, extractor.size)
    with (
        # During a training, neither its random state nor its autocast may mix with the metric's.
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
                custom_image_tranform=functools.partial(_blur, radius=blur) if blur else None,
                verbose=False,
            )
        except OSError as error:
            raise UserError(
                f"cannot read an image in {files[0].parent} ({error}): remove or replace it"
            ) from error


def _blur(image: np.ndarray, radius: float) -> np.ndarray:
    """Returns an image [H, W, 3] in 0..255 after the Gaussian filter, as floats."""
    return gaussian_filter(image.astype(np.float32), sigma=(radius, radius, 0))


def _cache_key(files: list[Path], extractor: Extractor, resize: str, blur: float) -> str:
    """Returns a hash of the files' contents and the settings; file names do not matter."""
    settings = f"{extractor.name} {extractor.digest} {extractor.size} {resize} {float(blur)}"
    key = hashlib.sha256(settings.encode())
    for path in files:
        with path.open("rb") as file:
            key.update(hashlib.file_digest(file, "sha256").digest())
    return key.hexdigest()[:24]
