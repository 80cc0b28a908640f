"""How often the one is found among many: pictures, captions, and both by each other."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


class RetrievalRecall(Metric):
    """R@k both ways, updated with `(text, images)`, unit vectors [B, D], row by row a pair.

    `compute` returns `caption_to_image_r@k` and `image_to_caption_r@k`: the share of rows whose
    partner is among the k nearest of all that were seen. Of equally near ones half are counted
    ahead, so that a model that tells nothing apart gets what chance would.

    Args:
        ks: the k's; one that is as large as the set gives 1.
    """

    is_differentiable = False
    full_state_update = False
    text: list[Tensor]
    images: list[Tensor]

    def __init__(self, ks: Sequence[int] = (1, 5, 10)) -> None:
        super().__init__()
        self.ks = tuple(ks)
        self.add_state("text", default=[], dist_reduce_fx="cat")
        self.add_state("images", default=[], dist_reduce_fx="cat")

    def update(self, text: Tensor, images: Tensor) -> None:
        self.text.append(text)
        self.images.append(images)

    def compute(self) -> dict[str, Tensor]:
        similarity = dim_zero_cat(self.text) @ dim_zero_cat(self.images).T
        ways = {"caption_to_image": similarity, "image_to_caption": similarity.T}
        return {
            f"{way}_r@{k}": (_ranks(scores) < k).float().mean()
            for way, scores in ways.items()
            for k in self.ks
        }


def _ranks(similarity: Tensor) -> Tensor:
    """How many are nearer to each row [N] of [N, N] than its partner on the diagonal."""
    own = similarity.diagonal()[:, None]
    nearer, equal = (similarity > own).sum(dim=1), (similarity == own).sum(dim=1) - 1
    return nearer + equal / 2


def identification_ranks(
    pictures: np.ndarray, originals: np.ndarray, groups: np.ndarray, among: int, seed: int
) -> np.ndarray:
    """How many of `among` - 1 other originals are nearer to each picture than its own, by cosine.

    Of equally near ones half are counted.

    Args:
        pictures: features [N, D].
        originals: features [M, D], M >= N, the pictures' own first and in their order. The others
            are drawn by lot from all of the same group.
        groups: [M], labels.
        among: originals, the own one too.

    Returns:
        Ranks [N], 0 the best.
    """
    generator = np.random.default_rng(seed)
    originals = originals / np.linalg.norm(originals, axis=1, keepdims=True)
    ranks = []
    for number, picture in enumerate(pictures):
        fellows = np.flatnonzero(groups == groups[number])
        others = generator.permutation(fellows[fellows != number])[: among - 1]
        nearness, own = originals[others] @ picture, originals[number] @ picture
        ranks.append((nearness > own).sum() + (nearness == own).sum() / 2)
    return np.array(ranks)
