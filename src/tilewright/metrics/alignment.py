"""Share of images that match their captions according to a checker."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest
from torch import Tensor

from tilewright.data import CaptionChecker


@dataclass(frozen=True)
class Share:
    """Share of trials that succeed, with its confidence interval."""

    successes: int
    trials: int

    @property
    def value(self) -> float:
        return self.successes / self.trials

    @property
    def interval(self) -> list[float]:
        """Wilson's 95 % confidence interval, rounded to four digits. It also holds near 0 and 1."""
        interval = binomtest(self.successes, self.trials).proportion_ci(0.95, method="wilson")
        return [round(float(interval.low), 4), round(float(interval.high), 4)]


def alignment_by_category(
    checker: CaptionChecker, captions: Sequence[str], images: Tensor
) -> dict[str, Share]:
    """Returns the share of images [N, 3, H, W] that match their captions, by caption category."""
    matches: dict[str, list[bool]] = defaultdict(list)
    for caption, image in zip(captions, images, strict=True):
        matches[checker.category(caption)].append(checker.matches(image, caption))
    return {
        category: Share(sum(matched), len(matched)) for category, matched in sorted(matches.items())
    }
