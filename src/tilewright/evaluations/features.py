"""Features of image sets, computed from PNG files, as for published values."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tilewright.data import CaptionedImages
from tilewright.evaluations.results import Result
from tilewright.metrics.distances import frechet_distance
from tilewright.metrics.extractors import AUTO, check_extractor, load_extractor
from tilewright.metrics.features import check_resize, folder_features, save_images


@dataclass(frozen=True)
class FeatureSettings:
    """Settings of the feature network, which all metrics on features share.

    Args:
        extractor: name of the network, or "auto", see `load_extractor`.
        resize: clean-fid's resize, "clean" or "legacy_pytorch".
        inception_weights: path of Inception's weights; None uses clean-fid's copy.

    Raises:
        UserError: the network or the resize is unknown, or weights do not exist.
    """

    extractor: str = AUTO
    resize: str = "clean"
    inception_weights: str | None = None

    def __post_init__(self) -> None:
        check_extractor(self.extractor, self.inception_weights)
        check_resize(self.resize)


class ImageSetFeatures:
    """Features of image sets, cached beside the data, and the distances between them.

    Args:
        data: data whose folder keeps the cache.
        device: torch device of the feature network.
        settings: settings of the feature network.
    """

    def __init__(self, data: CaptionedImages, device: str, settings: FeatureSettings):
        self.extractor = load_extractor(device, settings.extractor, settings.inception_weights)
        self.resize = settings.resize
        self.cache = data.cache.parent / "features"

    @property
    def result_settings(self) -> dict[str, Any]:
        """Settings of every result that is computed on the features."""
        return {
            "extractor": self.extractor.name,
            "extractor_digest": self.extractor.digest,
            "resize": self.resize,
        }

    def of_images(self, images: Tensor, folder: Path) -> np.ndarray:
        """Writes images [N, 3, H, W] to a folder and returns their features [N, D]."""
        return self.of_folder(write_image_folder(images, folder))

    def of_folder(self, folder: Path, blur: float = 0) -> np.ndarray:
        """Returns the features [N, D] of a folder of images.

        Args:
            blur: standard deviation of a Gaussian filter, in pixels of the original image.
        """
        return folder_features(folder, self.extractor, self.resize, blur, cache=self.cache)

    def frechet_result(
        self,
        images: dict[str, Tensor],
        split: str,
        folder: Path,
        extra: dict[str, Any] | None = None,
    ) -> Result:
        """Returns the Fréchet distance between two image sets [N, 3, H, W].

        Args:
            images: the two sets; each is written to the subfolder of its name.
            extra: settings of the result beside those of the features.
        """
        first, second = (self.of_images(batch, folder / name) for name, batch in images.items())
        return Result(
            self.extractor.metric_name("fid"),
            frechet_distance(first, second),
            split,
            len(second),
            {**(extra or {}), **self.result_settings},
        )


def write_image_folder(images: Tensor, folder: Path) -> Path:
    """Writes images [N, 3, H, W] as PNG files, replaces an existing folder, and returns it."""
    shutil.rmtree(folder, ignore_errors=True)
    save_images([images], folder)
    return folder
