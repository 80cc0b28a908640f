"""How well a dVAE's image tokens keep the picture."""

from pathlib import Path

import torch

from tilewright import runs
from tilewright.data import CaptionedImages
from tilewright.data.shapes import check
from tilewright.data.shapes.source import ShapesSource
from tilewright.evaluations.results import Result
from tilewright.metrics.reconstruction import CodebookUse, ReconstructionMetrics
from tilewright.pictures import comparison, save_tensor


class Reconstruction:
    """PSNR, SSIM, L1 and codebook use from hard codes; on shapes, what the checker passes as well.

    Args:
        splits: which to measure; those that the data does not have are left out.
        images: at most so many pictures of each, the first ones.
    """

    def __init__(self, splits: list[str], images: int = 1000):
        self.splits = splits
        self.images = images

    @torch.no_grad()
    def __call__(
        self, run: Path, data: CaptionedImages, *, seed: int, device: str, folder: Path
    ) -> list[Result]:
        network = runs.load_network(run, device)
        results = []
        for split in [split for split in self.splits if split in data.splits]:
            metrics = ReconstructionMetrics().to(device)
            codebook = CodebookUse(network.num_tokens).to(device)
            passed: list[bool] = []
            originals, captions = zip(*data.examples(split, self.images), strict=True)
            for first in range(0, len(originals), 64):
                batch = torch.stack(originals[first : first + 64]).to(device)
                tokens = network.encode(batch)
                made = network.decode(tokens)
                metrics.update(made, batch)
                codebook.update(tokens)
                if isinstance(data.source, ShapesSource):
                    pairs = zip(made.cpu(), captions[first : first + 64], strict=True)
                    passed += [check(image, caption) for image, caption in pairs]
                if first == 0:
                    save_tensor(comparison(batch[:16], made[:16]), folder / f"{split}.png")
            figures = {**metrics.compute(), **codebook.compute()}
            if passed:
                figures["checker"] = torch.tensor(passed).float().mean()
            results += [
                Result(name, float(value), split, len(originals), {})
                for name, value in figures.items()
            ]
        return results
