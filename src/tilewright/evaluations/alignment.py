"""Whether pictures of the shapes world show what their captions say."""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from tilewright.data import CaptionedImages
from tilewright.data.shapes import check, kind
from tilewright.data.shapes.source import ShapesSource
from tilewright.errors import UserError
from tilewright.evaluations.drawing import draw
from tilewright.evaluations.results import Result
from tilewright.plots import bars
from tilewright.prior import Sampling


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
        if not isinstance(data.source, ShapesSource):
            raise UserError(
                "metric=alignment needs pictures that the checker can read: data=shapes"
            )
        results: list[Result] = []
        for split in self.splits:
            drawing = draw(run, data, split, self.captions, self.sampling, seed, device)
            drawing.show(folder / f"{split}.png")
            results += alignment(drawing.captions, drawing.drawn, split, vars(self.sampling))
        plotted: dict[str, dict[str, tuple[float, float, float]]] = defaultdict(dict)
        for result in results:
            low, high = result.settings["interval"]
            plotted[result.split][result.settings["captions"]] = (result.value, low, high)
        bars(plotted, folder / "alignment.png", up="share drawn right")
        return results


def alignment(
    captions: Sequence[str], images: Tensor, split: str, settings: dict[str, Any]
) -> list[Result]:
    """The share of images [N, 3, H, W] of which their captions are true, by kind of caption."""
    passed = defaultdict(list)
    for caption, image in zip(captions, images, strict=True):
        passed[kind(caption)].append(check(image, caption))
    results = []
    for of_kind, verdicts in sorted(passed.items()):
        low, high = wilson_interval(sum(verdicts), len(verdicts))
        interval = [round(low, 4), round(high, 4)]
        own = {"captions": of_kind, "interval": interval, **settings}
        share = sum(verdicts) / len(verdicts)
        results.append(Result("alignment", share, split, len(verdicts), own))
    return results


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % confidence interval of a share (Wilson's, which holds near 0 and 1 too)."""
    share = successes / trials
    centre = share + z**2 / (2 * trials)
    reach = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    return (centre - reach) / scale, (centre + reach) / scale
