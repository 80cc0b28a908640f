"""How close drawn pictures are to real ones, as distributions (section 3.1)."""

import shutil
from pathlib import Path

import torch

from tilewright.data import CaptionedImages
from tilewright.evaluations.results import Result
from tilewright.metrics.extractors import find_extractor
from tilewright.metrics.frechet import (
    folder_statistics,
    frechet_distance,
    frechet_name,
    save_images,
)
from tilewright.pictures import captioned_grid, save
from tilewright.pipeline import TextToImage
from tilewright.prior import Sampling


class FrechetInceptionDistance:
    """Draws one picture for each caption of a split and compares the folder with the real one.

    The figure is `fid` where clean-fid's Inception is to be had; elsewhere it is computed on the
    offline feature network and bears that one's name.

    Args:
        split: whose captions and pictures.
        images: at most so many of them, the first ones.
        resize: clean-fid's way to the network's size, "clean" or "legacy_pytorch".
        inception_weights: path of Inception's weights, or None to look where clean-fid keeps them.
        sampling: how tokens are drawn.
    """

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
        originals, captions = zip(*data.examples(self.split, self.images), strict=True)
        model = TextToImage.from_run(run, device)
        drawn = model.images(captions, sampling=self.sampling, seed=seed).cpu()
        save(captioned_grid(captions[:8], drawn[:8]), folder / "samples.png")

        statistics = []
        for name, images in (("real", torch.stack(originals)), ("generated", drawn.squeeze(1))):
            shutil.rmtree(folder / name, ignore_errors=True)  # of an earlier evaluation
            save_images([images], folder / name)
            statistics.append(
                folder_statistics(
                    folder / name, extractor, self.resize, cache=data.cache.parent / "statistics"
                )
            )
        settings = {
            "extractor": extractor.name,
            "extractor_digest": extractor.digest,
            "resize": self.resize,
            **vars(self.sampling),
        }
        value = frechet_distance(*statistics)
        return [Result(frechet_name(extractor), value, self.split, len(drawn), settings)]
