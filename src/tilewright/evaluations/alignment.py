"""Alignment of generated images with their captions."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from tilewright.checks import check_whole
from tilewright.data import CaptionChecker, CaptionedImages
from tilewright.data.sources.capabilities import require_checker
from tilewright.evaluations.generation import generate_images
from tilewright.evaluations.results import Result
from tilewright.evaluations.splits import available_splits
from tilewright.metrics.alignment import alignment_by_category
from tilewright.prior import Sampling
from tilewright.viz.plots import plot_bars


@dataclass
class Alignment:
    """Share of generated images that match their captions, by split and caption category.

    One image is generated per caption. The source's checker compares the two.

    Args:
        splits: splits whose captions are used. Splits that the data does not have are left out.
        captions: maximum number of captions, sampled from each split.
        sampling: sampling settings.
    """

    splits: Sequence[str]
    captions: int = 1000
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        check_whole("captions", self.captions)

    def __call__(
        self, run: Path, data: CaptionedImages, *, seed: int, device: str, folder: Path
    ) -> list[Result]:
        checker = require_checker(data.source, "metric=alignment")
        results: list[Result] = []
        for split in available_splits(data, self.splits):
            images = generate_images(run, data, split, self.captions, self.sampling, seed, device)
            images.save_grid(folder / f"{split}.png")
            results += alignment_results(
                checker, images.captions, images.generated, split, vars(self.sampling)
            )
        _plot(results, folder / "alignment.png")
        return results


def alignment_results(
    checker: CaptionChecker,
    captions: Sequence[str],
    images: Tensor,
    split: str,
    settings: dict[str, Any],
) -> list[Result]:
    """Returns the alignment of images [N, 3, H, W] with their captions, one result per category."""
    return [
        Result(
            "alignment",
            share.value,
            split,
            share.trials,
            {"category": category, "interval": share.interval, **settings},
        )
        for category, share in alignment_by_category(checker, captions, images).items()
    ]


def _plot(results: list[Result], path: Path) -> None:
    by_split: dict[str, dict[str, tuple[float, float, float]]] = defaultdict(dict)
    for result in results:
        low, high = result.settings["interval"]
        by_split[result.split][result.settings["category"]] = (result.value, low, high)
    plot_bars(by_split, path, y_label="alignment")
