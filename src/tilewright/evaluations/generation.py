"""Real images of a split, and one generated image for each of their captions."""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tilewright import runs
from tilewright.data import CaptionedImages
from tilewright.pipeline import TextToImage
from tilewright.prior import Sampling
from tilewright.viz.images import captioned_grid, save_png


@dataclass(frozen=True, eq=False)
class RealAndGenerated:
    """Captions of a split with their real and generated images, both [N, 3, H, W] in [0, 1]."""

    captions: list[str]
    real: Tensor
    generated: Tensor

    def save_grid(self, path: Path, count: int = 12) -> None:
        """Saves the first images below their captions, generated ones to the left of real ones."""
        pairs = torch.stack([self.generated[:count], self.real[:count]], dim=1)
        save_png(captioned_grid(self.captions[:count], pairs), path)


def generate_images(
    run: Path,
    data: CaptionedImages,
    split: str,
    count: int,
    sampling: Sampling,
    seed: int,
    device: str,
) -> RealAndGenerated:
    """Generates one image for each of `count` captions, which are sampled from a split.

    Raises:
        UserError: the data does not have the split, or the run is not a prior.
    """
    steps = runs.trained_steps(run)  # a training may replace the weights between two metrics
    return _generate(run, data, split, count, sampling, seed, device, steps)


@functools.lru_cache(maxsize=2)  # the metrics of one command share the images
def _generate(
    run: Path,
    data: CaptionedImages,
    split: str,
    count: int,
    sampling: Sampling,
    seed: int,
    device: str,
    steps: int,
) -> RealAndGenerated:
    real, captions = zip(*data.examples(split, count), strict=True)
    model = TextToImage.from_run(run, device)
    generated = model.generate(captions, sampling=sampling, seed=seed).images.squeeze(1).cpu()
    return RealAndGenerated(list(captions), torch.stack(real), generated)
