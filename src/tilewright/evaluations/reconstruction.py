"""Quality of the images that a dVAE reconstructs from its image tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tilewright import runs
from tilewright.checks import check_flag, check_whole
from tilewright.data import CaptionedImages
from tilewright.data.image_tokenizer import split_batches
from tilewright.evaluations.features import FeatureSettings, ImageSetFeatures
from tilewright.evaluations.results import Result
from tilewright.evaluations.splits import available_splits
from tilewright.metrics.reconstruction import CodebookUsage, ReconstructionMetrics
from tilewright.viz.images import reconstruction_grid, save_png


@dataclass
class Reconstruction:
    """PSNR, SSIM, L1, codebook usage and Fréchet distance of reconstructions from hard codes.

    If the source has a checker, also the alignment: the share of reconstructions that still match
    the caption of their image.

    Args:
        splits: splits to measure. Splits that the data does not have are left out.
        images: maximum number of images, sampled from each split.
        frechet: True measures the Fréchet distance, which takes longest.
        features: settings of the feature network.
    """

    splits: Sequence[str]
    images: int = 1000
    frechet: bool = True
    features: FeatureSettings = field(default_factory=FeatureSettings)

    def __post_init__(self) -> None:
        check_flag("frechet", self.frechet)
        check_whole("images", self.images, 2 if self.frechet else 1)

    @torch.no_grad()
    def __call__(
        self, run: Path, data: CaptionedImages, *, seed: int, device: str, folder: Path
    ) -> list[Result]:
        network = runs.load_network(run, device)
        features = None
        if self.frechet:
            features = ImageSetFeatures(data, device, self.features)
        results = []
        for split in available_splits(data, self.splits):
            originals, captions = zip(*data.examples(split, self.images), strict=True)
            real = torch.stack(originals)
            reconstructed, values = _reconstruct(network, real, device)
            save_png(reconstruction_grid(real[:16], reconstructed[:16]), folder / f"{split}.png")
            if data.checker is not None:
                pairs = zip(reconstructed, captions, strict=True)
                matches = [data.checker.matches(image, caption) for image, caption in pairs]
                values["alignment"] = sum(matches) / len(matches)
            results += [
                Result(k, float(value), split, len(real), {}) for k, value in values.items()
            ]
            if features is not None:
                pair = {"real": real, "reconstructed": reconstructed}
                results.append(features.frechet_result(pair, split, folder / split))
        return results


def _reconstruct(
    network: Any, images: Tensor, device: str
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """Returns the reconstructions of images [N, 3, H, W], and metrics of pixels and codebook."""
    pixel_metrics = ReconstructionMetrics().to(device)
    codebook = CodebookUsage(network.num_tokens).to(device)
    reconstructions = []
    for batch in split_batches(images, network.image_size):
        tokens = network.encode(batch.to(device))
        reconstructions.append(network.decode(tokens))
        pixel_metrics.update(reconstructions[-1], batch.to(device))
        codebook.update(tokens)
    codebook_values = {f"codebook_{name}": value for name, value in codebook.compute().items()}
    return torch.cat(reconstructions).cpu(), {**pixel_metrics.compute(), **codebook_values}
