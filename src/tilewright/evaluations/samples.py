"""One picture drawn for each caption of a split: what most metrics of a prior look at."""

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tilewright.data import CaptionedImages
from tilewright.metrics.features import save_images
from tilewright.pipeline import TextToImage
from tilewright.prior import Sampling
from tilewright.viz.images import captioned_grid, save


@dataclass(frozen=True, eq=False)
class Drawing:
    """Captions of a split, their real pictures and drawn ones, both [N, 3, H, W] in [0, 1]."""

    captions: list[str]
    real: Tensor
    drawn: Tensor

    def show(self, path: Path, count: int = 12) -> None:
        """Writes the first pictures under their captions, the drawn left of the real."""
        pairs = torch.stack([self.drawn[:count], self.real[:count]], dim=1)
        save(captioned_grid(self.captions[:count], pairs), path)


@functools.lru_cache(maxsize=2)  # several metrics of one command look at the same pictures
def draw(
    run: Path,
    data: CaptionedImages,
    split: str,
    count: int,
    sampling: Sampling,
    seed: int,
    device: str,
) -> Drawing:
    """Draws one picture for each of the first `count` captions of a split.

    Raises:
        UserError: the data has no such split, or the run is no prior's.
    """
    real, captions = zip(*data.examples(split, count), strict=True)
    model = TextToImage.from_run(run, device)
    drawn = model.images(captions, sampling=sampling, seed=seed).squeeze(1).cpu()
    return Drawing(list(captions), torch.stack(real), drawn)


def write_folder(images: Tensor, folder: Path) -> Path:
    """Writes pictures [N, 3, H, W] as PNGs, in the place of an earlier evaluation's."""
    shutil.rmtree(folder, ignore_errors=True)
    save_images([images], folder)
    return folder
