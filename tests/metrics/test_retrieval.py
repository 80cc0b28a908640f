"""Tests of recall@k and identification ranks against counts by hand."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tilewright.errors import UserError
from tilewright.metrics.retrieval import RetrievalRecall, identification_ranks


def test_recall_of_known_ranks():
    images = torch.eye(4)
    text = torch.tensor([[3.0, 2, 1, 0], [3, 2, 1, 0], [0, 0, 5, 1], [1, 2, 3, 0]])  # ranks 0 1 0 3
    recall = RetrievalRecall(ks=(1, 2, 4))
    recall.update(text[:3], images[:3])
    recall.update(text[3:], images[3:])
    values = {name: float(value) for name, value in recall.compute().items()}
    assert values["caption_to_image_r@1"] == 0.5
    assert values["caption_to_image_r@2"] == 0.75
    assert values["caption_to_image_r@4"] == 1.0


def test_the_two_directions_differ():
    text = torch.tensor([[1.0, 0.0], [0.9, 0.1]])
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    values = RetrievalRecall(ks=(1,))(text, images)
    # Both captions are nearest to the first image.
    assert float(values["caption_to_image_r@1"]) == 0.5
    assert float(values["image_to_caption_r@1"]) == 1.0


def test_ties_share_the_places():
    same = torch.ones(100, 4)
    values = RetrievalRecall(ks=(1, 10))(same, same)
    assert float(values["caption_to_image_r@1"]) == pytest.approx(1 / 100)
    assert float(values["caption_to_image_r@10"]) == pytest.approx(10 / 100)


@pytest.mark.parametrize("copies", [1, 2, 3, 5])
def test_captions_of_several_images_count_as_one_of_them(copies):
    generator = torch.Generator().manual_seed(0)
    captions = F.normalize(torch.randn(4, 16, generator=generator), dim=1)
    text = captions.repeat_interleave(copies, dim=0)
    rounding = 1e-7 * torch.randn(text.shape, generator=generator)  # of other batches
    values = RetrievalRecall(ks=(1, 5))(text + rounding, text)
    for direction in ("caption_to_image", "image_to_caption"):
        assert float(values[f"{direction}_r@1"]) == pytest.approx(1 / copies)
        assert float(values[f"{direction}_r@5"]) == pytest.approx(1)


def test_recall_of_random_vectors_is_at_chance():
    torch.manual_seed(0)
    text, images = (F.normalize(torch.randn(1000, 64), dim=1) for _ in range(2))
    values = RetrievalRecall()(text, images)
    assert float(values["image_to_caption_r@10"]) == pytest.approx(0.01, abs=0.01)


def test_identification_ranks_of_known_features():
    true_features = np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.5, 0.5]])
    features = np.array([[5.0, 0.1], [3.0, 1.0]])  # the second is farthest from its own
    ranks = identification_ranks(features, true_features, np.zeros(4), among=4, seed=0)
    assert ranks.tolist() == [0, 3]


def test_identification_candidates_are_of_the_same_group():
    true_features = np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1], [0.5, 0.5]])
    groups = np.array(["a", "b", "a", "b"])
    ranks = identification_ranks(np.array([[0.6, 0.4]]), true_features, groups, among=2, seed=0)
    assert ranks.tolist() == [1]  # behind the third; the fourth is nearer, but in group b


def test_identification_of_random_features_is_at_chance():
    generator = np.random.default_rng(0)
    features, true_features = generator.normal(size=(2, 2000, 64))
    ranks = identification_ranks(features, true_features, np.zeros(2000), among=100, seed=0)
    assert (ranks < 5).mean() == pytest.approx(0.05, abs=0.015)
    same = identification_ranks(np.ones((9, 4)), np.ones((9, 4)), np.zeros(9), among=9, seed=0)
    assert set(same.tolist()) <= set(range(9))


@pytest.mark.parametrize("copies", [0, 1, 2])
def test_identification_counts_equal_candidates_by_chance(copies):
    generator = np.random.default_rng(0)
    own = generator.normal(size=(1, 8)).astype(np.float32)
    others = np.repeat(own, copies, axis=0) * np.float32(1 + 1e-7)
    true_features = np.concatenate([own, others, generator.normal(size=(9, 8))]).astype(np.float32)
    groups = np.zeros(len(true_features))
    hits = [
        identification_ranks(own, true_features, groups, len(groups), seed)[0] == 0
        for seed in range(600)
    ]
    assert np.mean(hits) == pytest.approx(1 / (copies + 1), abs=0.06)


def test_vectors_that_are_nan_have_no_recall():
    vectors = torch.eye(4)
    broken = vectors.clone()
    broken[2] = torch.nan
    for pair in ((vectors, broken), (broken, vectors)):
        assert all(value.isnan() for value in RetrievalRecall()(*pair).values())
    with pytest.raises(UserError, match="not finite"):
        identification_ranks(broken.numpy(), vectors.numpy(), np.zeros(4), among=4, seed=0)


def test_features_of_zero_are_not_nan():
    ranks = identification_ranks(np.zeros((1, 4)), np.eye(4), np.zeros(4), among=4, seed=0)
    assert 0 <= ranks[0] < 4
