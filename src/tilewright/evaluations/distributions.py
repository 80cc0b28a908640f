"""How drawn pictures are distributed, beside real ones: fid, kid and is (section 3.1)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.data import CaptionedImages
from tilewright.evaluations.results import Result
from tilewright.evaluations.samples import draw, write_folder
from tilewright.metrics.distances import frechet_distance, kernel_distance
from tilewright.metrics.extractors import Extractor, find_extractor
from tilewright.metrics.features import folder_features
from tilewright.metrics.scores import classifier_score
from tilewright.prior import Sampling
from tilewright.viz.plots import curves

# Features [N, D] of the folder "real" or "generated", blurred by so many pixels.
FolderFeatures = Callable[[str, float], np.ndarray]
# A figure and the settings that are its own.
Figure = tuple[float, dict[str, Any]]


class DrawnDistribution(ABC):
    """Draws one picture for each caption of a split; features of both folders of PNGs.

    The figures have the metric's name where clean-fid's Inception is to be had; elsewhere they are
    computed on the offline network and bear that one's name.

    Args:
        split: whose captions and pictures.
        images: at most so many of them, the first ones.
        resize: clean-fid's way to the network's size, "clean" or "legacy_pytorch".
        inception_weights: path of Inception's weights, or None to look where clean-fid keeps them.
        sampling: how tokens are drawn.
    """

    metric: str  # its name on Inception

    def __init__(
        self,
        split: str = "validation",
        images: int = 1000,
        resize: str = "clean",
        inception_weights: str | None = None,
        sampling: Sampling | None = None,
    ):
        self.split = split
        self.images = images
        self.resize = resize
        self.inception_weights = inception_weights
        self.sampling = sampling or Sampling()

    def __call__(
        self, run: Path, data: CaptionedImages, *, seed: int, device: str, folder: Path
    ) -> list[Result]:
        extractor = find_extractor(device, self.inception_weights)
        drawing = draw(run, data, self.split, self.images, self.sampling, seed, device)
        drawing.show(folder / "samples.png")
        folders = {
            "real": write_folder(drawing.real, folder / "real"),
            "generated": write_folder(drawing.drawn, folder / "generated"),
        }

        def features(of: str, blur: float = 0) -> np.ndarray:
            return folder_features(
                folders[of], extractor, self.resize, blur, cache=data.cache.parent / "features"
            )

        settings = {
            "extractor": extractor.name,
            "extractor_digest": extractor.digest,
            "resize": self.resize,
            **vars(self.sampling),
        }
        name, count = extractor.figure(self.metric), len(drawing.captions)
        return [
            Result(name, value, self.split, count, {**own, **settings})
            for value, own in self.figures(extractor, features, seed)
        ]

    @abstractmethod
    def figures(self, extractor: Extractor, features: FolderFeatures, seed: int) -> list[Figure]:
        """The values, each with the settings that are its own."""


class FrechetInceptionDistance(DrawnDistribution):
    """Fréchet distance between drawn and real pictures.

    Args:
        blur: standard deviations, in pixels, of a Gaussian filter over both kinds of pictures
            before they are compared; the paper's curve is [0, 1, 2, 4, 8] at 256x256.
        others: as `DrawnDistribution`'s.
    """

    metric = "fid"

    def __init__(self, blur: list[float] | float = 0, **others: Any):
        super().__init__(**others)
        self.blur = [blur] if isinstance(blur, int | float) else list(blur)

    def figures(self, extractor: Extractor, features: FolderFeatures, seed: int) -> list[Figure]:
        return [
            (frechet_distance(features("real", blur), features("generated", blur)), {"blur": blur})
            for blur in self.blur
        ]

    def __call__(self, run: Path, data: CaptionedImages, **how: Any) -> list[Result]:
        results = super().__call__(run, data, **how)
        if len(results) > 1:
            points = [(result.settings["blur"], result.value) for result in results]
            path = how["folder"] / "blur.png"
            curves({self.split: points}, path, across="blur, in pixels", up=results[0].metric)
        return results


class KernelInceptionDistance(DrawnDistribution):
    """Kernel distance between drawn and real pictures.

    Args:
        subsets, subset_size: the mean over so many random subsets of so many pictures.
        others: as `DrawnDistribution`'s.
    """

    metric = "kid"

    def __init__(self, subsets: int = 100, subset_size: int = 1000, **others: Any):
        super().__init__(**others)
        self.subsets = subsets
        self.subset_size = subset_size

    def figures(self, extractor: Extractor, features: FolderFeatures, seed: int) -> list[Figure]:
        how = {"subsets": self.subsets, "subset_size": self.subset_size}
        value = kernel_distance(features("real", 0), features("generated", 0), **how, seed=seed)
        return [(value, how)]


class InceptionScore(DrawnDistribution):
    """Inception score of drawn pictures, and for comparison of the real ones.

    Args:
        splits: parts that are scored for themselves; the figure is their mean, and `spread` one
            standard deviation around it.
        others: as `DrawnDistribution`'s.
    """

    metric = "is"

    def __init__(self, splits: int = 10, **others: Any):
        super().__init__(**others)
        self.splits = splits

    def figures(self, extractor: Extractor, features: FolderFeatures, seed: int) -> list[Figure]:
        scored = []
        for of in ("generated", "real"):
            mean, deviation = classifier_score(features(of, 0), extractor, self.splits, seed)
            spread = [round(mean - deviation, 4), round(mean + deviation, 4)]
            scored.append((mean, {"pictures": of, "splits": self.splits, "spread": spread}))
        return scored
