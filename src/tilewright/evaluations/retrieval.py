"""How well a ranker tells which caption belongs to which picture."""

from pathlib import Path

import torch

from tilewright.data import CaptionedImages
from tilewright.evaluations.results import Result
from tilewright.metrics.retrieval import RetrievalRecall
from tilewright.reranking import ContrastiveRanker


class Retrieval:
    """R@1, R@5 and R@10 both ways among the first pairs of a split.

    Captions that are true of several pictures make a perfect score impossible.

    Args:
        splits: which to measure; those that the data does not have are left out.
        images: at most so many pairs of each; R@k among more is lower.
        batch_size: pairs that are encoded at once.
    """

    def __init__(self, splits: list[str], images: int = 1000, batch_size: int = 128):
        self.splits = splits
        self.images = images
        self.batch_size = batch_size

    @torch.inference_mode()
    def __call__(
        self, run: Path, data: CaptionedImages, *, seed: int, device: str, folder: Path
    ) -> list[Result]:
        ranker = ContrastiveRanker.from_run(run, device)
        results = []
        for split in data.present(self.splits):
            originals, captions = zip(*data.examples(split, self.images), strict=True)
            recall = RetrievalRecall()
            for first in range(0, len(captions), self.batch_size):
                part = slice(first, first + self.batch_size)
                images = ranker.encode_images(torch.stack(originals[part]).to(device))
                recall.update(ranker.encode_captions(captions[part]).cpu(), images.cpu())
            results += [
                Result(name, float(value), split, len(captions), {})
                for name, value in recall.compute().items()
            ]
        return results
