"""How well a dVAE's image tokens keep the picture."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tilewright import runs
from tilewright.data import CaptionedImages
from tilewright.evaluations.results import Result
from tilewright.evaluations.samples import write_folder
from tilewright.metrics.distances import frechet_distance
from tilewright.metrics.extractors import Extractor, find_extractor
from tilewright.metrics.features import folder_features
from tilewright.metrics.reconstruction import CodebookUse, ReconstructionMetrics
from tilewright.viz.images import comparison, save_tensor


class Reconstruction:
    """PSNR, SSIM, L1, codebook use and the Fréchet distance to the originals, from hard codes.

    On shapes also what the checker passes. The Fréchet distance is `fid` on Inception, and has the
    offline network's name where that takes its place.

    Args:
        splits: which to measure; those that the data does not have are left out.
        images: at most so many pictures of each, the first ones.
        frechet: whether to measure the Fréchet distance, which takes longest.
        resize, inception_weights: its way to the network's size and the path of Inception's
            weights, as metric=fid has them.
    """

    def __init__(
        self,
        splits: list[str],
        images: int = 1000,
        frechet: bool = True,
        resize: str = "clean",
        inception_weights: str | None = None,
    ):
        self.splits = splits
        self.images = images
        self.frechet = frechet
        self.resize = resize
        self.inception_weights = inception_weights

    @torch.no_grad()
    def __call__(
        self, run: Path, data: CaptionedImages, *, seed: int, device: str, folder: Path
    ) -> list[Result]:
        network = runs.load_network(run, device)
        extractor = find_extractor(device, self.inception_weights) if self.frechet else None
        results = []
        for split in data.present(self.splits):
            originals, captions = zip(*data.examples(split, self.images), strict=True)
            real = torch.stack(originals)
            made, figures = self.reconstruct(network, real, device)
            save_tensor(comparison(real[:16], made[:16]), folder / f"{split}.png")
            if data.checker is not None:
                matches = [data.checker.matches(*pair) for pair in zip(made, captions, strict=True)]
                figures["alignment"] = sum(matches) / len(matches)
            results += [Result(name, float(v), split, len(real), {}) for name, v in figures.items()]
            if extractor is not None:
                cache = data.cache.parent / "features"
                results.append(self.distance(real, made, split, extractor, folder / split, cache))
        return results

    def reconstruct(
        self, network: Any, real: Tensor, device: str
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Reconstructions [N, 3, H, W] of as many pictures, and the figures on pixels and codes."""
        metrics = ReconstructionMetrics().to(device)
        codebook = CodebookUse(network.num_tokens).to(device)
        made = []
        for batch in real.split(64):
            tokens = network.encode(batch.to(device))
            made.append(network.decode(tokens))
            metrics.update(made[-1], batch.to(device))
            codebook.update(tokens)
        return torch.cat(made).cpu(), {**metrics.compute(), **codebook.compute()}

    def distance(
        self,
        real: Tensor,
        made: Tensor,
        split: str,
        extractor: Extractor,
        folder: Path,
        cache: Path,
    ) -> Result:
        """The Fréchet distance between originals and reconstructions."""
        features = [
            folder_features(
                write_folder(images, folder / name), extractor, self.resize, cache=cache
            )
            for name, images in (("real", real), ("reconstructed", made))
        ]
        settings = {
            "extractor": extractor.name,
            "extractor_digest": extractor.digest,
            "resize": self.resize,
        }
        value = frechet_distance(*features)
        return Result(extractor.figure("fid"), value, split, len(real), settings)
