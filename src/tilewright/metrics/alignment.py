"""Which share of pictures shows what their captions say, by the checker of shapes."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest
from torch import Tensor

from tilewright.data.sources.shapes import check, kind


@dataclass(frozen=True)
class Share:
    """How many of so many trials succeeded."""

    successes: int
    trials: int

    @property
    def value(self) -> float:
        return self.successes / self.trials

    @property
    def interval(self) -> list[float]:
        """Wilson's 95 % confidence interval, which holds near 0 and 1 too; to four digits."""
        found = binomtest(self.successes, self.trials).proportion_ci(0.95, method="wilson")
        return [round(float(found.low), 4), round(float(found.high), 4)]


def alignment(captions: Sequence[str], images: Tensor) -> dict[str, Share]:
    """The share of images [N, 3, H, W] of which their captions are true, by kind of caption."""
    verdicts: dict[str, list[bool]] = defaultdict(list)
    for caption, image in zip(captions, images, strict=True):
        verdicts[kind(caption)].append(check(image, caption))
    return {name: Share(sum(of_kind), len(of_kind)) for name, of_kind in sorted(verdicts.items())}
