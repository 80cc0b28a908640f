"""Distribution metrics of generated images: FID, KID and Inception score (section 3.1)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilewright.checks import check_number, check_whole
from tilewright.data import CaptionedImages
from tilewright.errors import UserError
from tilewright.evaluations.features import FeatureSettings, ImageSetFeatures, write_image_folder
from tilewright.evaluations.generation import generate_images
from tilewright.evaluations.results import Result
from tilewright.metrics.distances import (
    check_subsets,
    frechet_distance,
    kernel_distance,
    resolve_subsets,
)
from tilewright.metrics.scores import classifier_score
from tilewright.prior import Sampling
from tilewright.viz.plots import plot_lines

Measurement = tuple[float, dict[str, Any]]  # a value and its own settings


@dataclass(kw_only=True)
class DistributionMetric(ABC):
    """Base class of metrics on the features of generated and real images.

    One image is generated per caption of a split. On a network other than Inception, the metric
    carries the network's name.

    Args:
        split: split of the captions and real images.
        images: maximum number of images, sampled from the split.
        features: settings of the feature network.
        sampling: sampling settings.
    """

    metric = ""  # name of the metric on Inception

    split: str = "validation"
    images: int = 1000
    features: FeatureSettings = field(default_factory=FeatureSettings)
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        check_whole("images", self.images, 2)

    def __call__(
        self, run: Path, data: CaptionedImages, *, seed: int, device: str, folder: Path
    ) -> list[Result]:
        features = ImageSetFeatures(data, device, self.features)
        images = generate_images(run, data, self.split, self.images, self.sampling, seed, device)
        images.save_grid(folder / "samples.png")
        folders = {
            "real": write_image_folder(images.real, folder / "real"),
            "generated": write_image_folder(images.generated, folder / "generated"),
        }
        name = features.extractor.metric_name(self.metric)
        shared = {**features.result_settings, **vars(self.sampling)}
        results = [
            Result(name, value, self.split, len(images.captions), {**settings, **shared})
            for value, settings in self.measure(features, folders, seed)
        ]
        self.plot(results, folder)
        return results

    @abstractmethod
    def measure(
        self, features: ImageSetFeatures, folders: Mapping[str, Path], seed: int
    ) -> list[Measurement]:
        """Returns the values of the metric, each with its own settings.

        Args:
            folders: folders of the images "real" and "generated".
        """

    def plot(self, results: list[Result], folder: Path) -> None:
        """Plots the results into `folder`. Most metrics have nothing to plot."""
        return


@dataclass(kw_only=True)
class FrechetInceptionDistance(DistributionMetric):
    """Fréchet distance between generated and real images.

    Args:
        blur: standard deviation of a Gaussian filter over all images, in pixels, or a list of them
            for a curve. The paper's curve has [0, 1, 2, 4, 8] at 256x256.
        split, images, features, sampling: see `DistributionMetric`.
    """

    metric = "fid"

    blur: Sequence[float] | float = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for blur in self._blurs():
            check_number("blur", blur, 0)
        if not self._blurs():
            raise UserError("blur=[] measures nothing: set [0]")

    def measure(
        self, features: ImageSetFeatures, folders: Mapping[str, Path], seed: int
    ) -> list[Measurement]:
        measurements = []
        for blur in self._blurs():
            real = features.of_folder(folders["real"], blur)
            generated = features.of_folder(folders["generated"], blur)
            measurements.append((frechet_distance(real, generated), {"blur": blur}))
        return measurements

    def _blurs(self) -> Sequence[float]:
        is_list = isinstance(self.blur, Sequence) and not isinstance(self.blur, str)
        return self.blur if is_list else [self.blur]  # type: ignore[return-value, list-item]

    def plot(self, results: list[Result], folder: Path) -> None:
        if len(results) > 1:
            points = [(result.settings["blur"], result.value) for result in results]
            name = results[0].metric
            plot_lines(
                {self.split: points}, folder / "blur.png", x_label="blur, in pixels", y_label=name
            )


@dataclass(kw_only=True)
class KernelInceptionDistance(DistributionMetric):
    """Kernel distance between generated and real images.

    Args:
        subsets: number of random subsets that are averaged.
        subset_size: images per subset.
        split, images, features, sampling: see `DistributionMetric`.
    """

    metric = "kid"

    subsets: int = 100
    subset_size: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_subsets(self.subsets, self.subset_size)

    def measure(
        self, features: ImageSetFeatures, folders: Mapping[str, Path], seed: int
    ) -> list[Measurement]:
        real = features.of_folder(folders["real"])
        generated = features.of_folder(folders["generated"])
        subsets, subset_size = resolve_subsets(
            len(real), len(generated), self.subsets, self.subset_size
        )
        value = kernel_distance(real, generated, subsets, subset_size, seed)
        return [(value, {"subsets": subsets, "subset_size": subset_size})]


@dataclass(kw_only=True)
class InceptionScore(DistributionMetric):
    """Inception score of generated images, with that of the real images for comparison.

    The results' `spread` is one standard deviation below and above the mean.

    Args:
        splits: number of parts that are scored separately and averaged. Each part has at least two
            images, so few images have fewer parts.
        split, images, features, sampling: see `DistributionMetric`.
    """

    metric = "is"

    splits: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("splits", self.splits)

    def measure(
        self, features: ImageSetFeatures, folders: Mapping[str, Path], seed: int
    ) -> list[Measurement]:
        measurements = []
        for name in ("generated", "real"):
            image_features = features.of_folder(folders[name])
            splits = max(1, min(self.splits, len(image_features) // 2))
            mean, deviation = classifier_score(image_features, features.extractor, splits, seed)
            spread = [round(mean - deviation, 4), round(mean + deviation, 4)]
            settings = {"image_set": name, "splits": splits, "spread": spread}
            measurements.append((mean, settings))
        return measurements
