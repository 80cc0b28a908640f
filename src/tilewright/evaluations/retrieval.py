"""Recall of a contrastive ranker between captions and images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tilewright.checks import check_whole
from tilewright.data import CaptionedImages
from tilewright.errors import UserError
from tilewright.evaluations.results import Result
from tilewright.evaluations.splits import available_splits
from tilewright.metrics.retrieval import RetrievalRecall
from tilewright.reranking import ContrastiveRanker

TOP = (1, 5, 10)  # k of recall@k


@dataclass
class Retrieval:
    """Recall@1, @5 and @10 in both directions among a sample of a split.

    A caption that matches several images makes a perfect score impossible. Values of k that include
    all pairs are left out, because they always give 1.

    Args:
        splits: splits to measure. Splits that the data does not have are left out.
        images: number of pairs per split at most. Recall among more pairs is lower.
        batch_size: pairs that are encoded at once.
    """

    splits: Sequence[str]
    images: int = 1000
    batch_size: int = 128

    def __post_init__(self) -> None:
        check_whole("images", self.images, 2)
        check_whole("batch_size", self.batch_size)

    @torch.inference_mode()
    def __call__(
        self, run: Path, data: CaptionedImages, *, seed: int, device: str, folder: Path
    ) -> list[Result]:
        ranker = ContrastiveRanker.from_run(run, device)
        results = []
        for split in available_splits(data, self.splits):
            originals, captions = zip(*data.examples(split, self.images), strict=True)
            if len(captions) < 2:
                raise UserError(
                    f"{split} has only one usable pair, and recall needs 2 or more: name another "
                    "split with metric.splits="
                )
            recall = RetrievalRecall([k for k in TOP if k < len(captions)])
            for start in range(0, len(captions), self.batch_size):
                batch = slice(start, start + self.batch_size)
                images = ranker.encode_images(torch.stack(originals[batch]).to(device))
                text = ranker.encode_captions(captions[batch])
                recall.update(text.cpu(), images.cpu())
            results += [
                Result(name, float(value), split, len(captions), {})
                for name, value in recall.compute().items()
            ]
        return results
