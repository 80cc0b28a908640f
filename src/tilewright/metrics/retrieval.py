"""Retrieval metrics: recall@k between captions and images, and identification ranks."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


class RetrievalRecall(Metric):
    """Recall@k between captions and images, in both directions.

    `update` takes unit vectors `(text, images)`, both [B, D]; equal rows are a pair. `compute`
    returns `caption_to_image_r@k` and `image_to_caption_r@k`: the share of rows whose partner is
    among the k nearest of all rows. Half of the ties count as nearer. A model that gives all pairs
    the same score then has a recall of 0 for small k.

    Args:
        ks: values of k. A k of at least the number of rows gives 1.
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
        directions = {"caption_to_image": similarity, "image_to_caption": similarity.T}
        return {
            f"{direction}_r@{k}": (_partner_ranks(scores) < k).float().mean()
            for direction, scores in directions.items()
            for k in self.ks
        }


def _partner_ranks(similarity: Tensor) -> Tensor:
    """Returns the rank [N], 0 the best, of the diagonal in each row of similarities [N, N]."""
    partner = similarity.diagonal()[:, None]
    nearer = (similarity > partner).sum(dim=1)
    ties = (similarity == partner).sum(dim=1) - 1
    return nearer + ties / 2


def identification_ranks(
    features: np.ndarray, true_features: np.ndarray, groups: np.ndarray, among: int, seed: int
) -> np.ndarray:
    """Returns the rank [N] of each image's true image among candidates, by cosine similarity.

    Rank 0 is the best. Half of the ties count as nearer.

    Args:
        features: features [N, D] of the images to identify.
        true_features: features [M, D] of true images, M >= N. The first N belong to `features`.
        groups: group label [M] of each true image. Candidates are of the same group.
        among: number of candidates: the true image and `among - 1` others, sampled at random.
        seed: seed of the candidates.
    """
    generator = np.random.default_rng(seed)
    true_features = true_features / np.linalg.norm(true_features, axis=1, keepdims=True)
    ranks = []
    for index, feature in enumerate(features):
        group = np.flatnonzero(groups == groups[index])
        distractors = generator.permutation(group[group != index])[: among - 1]
        similarities = true_features[distractors] @ feature
        true_similarity = true_features[index] @ feature
        ties = (similarities == true_similarity).sum()
        ranks.append((similarities > true_similarity).sum() + ties / 2)
    return np.array(ranks)
