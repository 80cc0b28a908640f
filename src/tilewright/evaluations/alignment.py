"""Whether pictures of the shapes world show what their captions say."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tilewright.data import CaptionChecker, CaptionedImages
from tilewright.data.sources.capabilities import require_checker
from tilewright.evaluations.results import Result
from tilewright.evaluations.samples import draw
from tilewright.metrics.alignment import alignment_by_category
from tilewright.prior import Sampling
from tilewright.viz.plots import bars


class Alignment:
    """The share of single samples that the shapes checker passes, by split and kind of caption.

    Args:
        splits: whose captions are drawn.
        captions: at most so many of each split, the first ones.
        sampling: how tokens are drawn.
    """

    def __init__(self, splits: list[str], captions: int = 1000, sampling: Sampling | None = None):
        self.splits = splits
        self.captions = captions
        self.sampling = sampling or Sampling()

    def __call__(
        self, run: Path, data: CaptionedImages, *, seed: int, device: str, folder: Path
    ) -> list[Result]:
        checker = require_checker(data.source, "metric=alignment")
        results: list[Result] = []
        for split in self.splits:
            drawing = draw(run, data, split, self.captions, self.sampling, seed, device)
            drawing.show(folder / f"{split}.png")
            results += alignment_results(
                checker, drawing.captions, drawing.drawn, split, vars(self.sampling)
            )
        plotted: dict[str, dict[str, tuple[float, float, float]]] = defaultdict(dict)
        for result in results:
            low, high = result.settings["interval"]
            plotted[result.split][result.settings["category"]] = (result.value, low, high)
        bars(plotted, folder / "alignment.png", up="share drawn right")
        return results


def alignment_results(
    checker: CaptionChecker,
    captions: Sequence[str],
    images: Tensor,
    split: str,
    settings: dict[str, Any],
) -> list[Result]:
    """Returns the alignment of images [N, 3, H, W] with their captions, a result per category."""
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
