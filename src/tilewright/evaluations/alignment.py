"""Whether pictures of the shapes world show what their captions say."""

import math
from collections import defaultdict
from pathlib import Path

from tilewright.data import CaptionedImages
from tilewright.data.shapes import check, kind
from tilewright.data.shapes.source import ShapesSource
from tilewright.errors import UserError
from tilewright.evaluations.results import Result
from tilewright.pictures import captioned_grid, save
from tilewright.pipeline import TextToImage
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
        model = TextToImage.from_run(run, device)
        results = []
        for split in self.splits:
            captions = [caption for _, caption in data.examples(split, self.captions)]
            images = model.images(captions, sampling=self.sampling, seed=seed)
            save(captioned_grid(captions[:12], images[:12]), folder / f"{split}.png")
            passed = defaultdict(list)
            for caption, image in zip(captions, images.squeeze(1).cpu(), strict=True):
                passed[kind(caption)].append(check(image, caption))
            for of_kind, verdicts in sorted(passed.items()):
                low, high = wilson_interval(sum(verdicts), len(verdicts))
                settings = {
                    "captions": of_kind,
                    "interval": [round(low, 4), round(high, 4)],
                    **vars(self.sampling),
                }
                share = sum(verdicts) / len(verdicts)
                results.append(Result("alignment", share, split, len(verdicts), settings))
        return results


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % confidence interval of a share (Wilson's, which holds near 0 and 1 too)."""
    share = successes / trials
    centre = share + z**2 / (2 * trials)
    reach = z * math.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    scale = 1 + z**2 / trials
    return (centre - reach) / scale, (centre + reach) / scale
