"""Retrieval metrics: recall@k between captions and images, and identification ranks."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from tilewright.metrics.features import check_finite

# Cosines that differ by less are equal: equal captions in two batches differ by rounding.
TIE_TOLERANCE = 1e-5


class RetrievalRecall(Metric):
    """Recall@k between captions and images, in both directions.

    `update` takes unit vectors `(text, images)`, both [B, D]; equal rows are a pair. `compute`
    returns `caption_to_image_r@k` and `image_to_caption_r@k`: the share of rows whose partner is
    among the k nearest of all rows. Rows that are as near as the partner share its places. A
    caption of three images counts 1/3 at k = 1. A model that gives all pairs the same score is at
    chance.

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
        text, images = (dim_zero_cat(vectors).float() for vectors in (self.text, self.images))
        similarity = text @ images.T
        directions = {"caption_to_image": similarity, "image_to_caption": similarity.T}
        values = {}
        for direction, scores in directions.items():
            nearer, ties = _partner_places(scores)
            for k in self.ks:
                hits = ((k - nearer) / ties).clamp(0, 1)
                # Comparisons with nan are false, so a vector that is nan has no ties with itself.
                values[f"{direction}_r@{k}"] = hits.where(ties > 0, torch.nan).mean()
        return values


def _partner_places(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Returns how many of each row of [N, N] exceed the diagonal [N], and how many equal it [N].

    The diagonal itself is among the equal ones.
    """
    difference = similarity - similarity.diagonal()[:, None]
    nearer = (difference > TIE_TOLERANCE).sum(dim=1)
    return nearer, (difference >= -TIE_TOLERANCE).sum(dim=1) - nearer


def identification_ranks(
    features: np.ndarray, true_features: np.ndarray, groups: np.ndarray, among: int, seed: int
) -> np.ndarray:
    """Returns the rank [N] of each image's true image among candidates, by cosine similarity.

    Rank 0 is the best. Ties are broken at random.

    Args:
        features: features [N, D] of the images to identify.
        true_features: features [M, D] of true images, M >= N. The first N belong to `features`.
        groups: group label [M] of each true image. Candidates are of the same group.
        among: number of candidates: the true image and `among - 1` others, sampled at random.
        seed: seed of the candidates and of the ties.

    Raises:
        UndefinedMetric: a feature is not finite.
    """
    check_finite(features, true_features)
    generator = np.random.default_rng(seed)
    features, true_features = _normalize(features), _normalize(true_features)
    ranks = []
    for index, feature in enumerate(features):
        group = np.flatnonzero(groups == groups[index])
        distractors = generator.permutation(group[group != index])[: among - 1]
        difference = (true_features[distractors] - true_features[index]) @ feature
        ties = (np.abs(difference) <= TIE_TOLERANCE).sum()
        ranks.append((difference > TIE_TOLERANCE).sum() + generator.integers(ties + 1))
    return np.array(ranks)


def _normalize(features: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, np.finfo(features.dtype).tiny)
