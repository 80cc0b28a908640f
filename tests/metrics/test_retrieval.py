"""R@k against counts by hand."""

import pytest
import torch
from torch.nn import functional as F

from tilewright.metrics.retrieval import RetrievalRecall


def test_by_hand():
    images = torch.eye(4)
    text = torch.tensor([[3.0, 2, 1, 0], [3, 2, 1, 0], [0, 0, 5, 1], [1, 2, 3, 0]])  # ranks 0 1 0 3
    recall = RetrievalRecall(ks=(1, 2, 4))
    recall.update(text[:3], images[:3])
    recall.update(text[3:], images[3:])
    figures = {name: float(value) for name, value in recall.compute().items()}
    assert figures["caption_to_image_r@1"] == 0.5
    assert figures["caption_to_image_r@2"] == 0.75
    assert figures["caption_to_image_r@4"] == 1.0


def test_the_two_ways_differ():
    text = torch.tensor([[1.0, 0.0], [0.9, 0.1]])
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    figures = RetrievalRecall(ks=(1,))(text, images)
    assert float(figures["caption_to_image_r@1"]) == 0.5  # both captions lie nearest to the first
    assert float(figures["image_to_caption_r@1"]) == 1.0


def test_a_model_that_tells_nothing_apart_is_no_better_than_chance():
    same = torch.ones(100, 4)
    figures = RetrievalRecall(ks=(1, 10))(same, same)
    assert float(figures["caption_to_image_r@1"]) == 0
    assert float(figures["caption_to_image_r@10"]) == 0


def test_chance():
    torch.manual_seed(0)
    text, images = (F.normalize(torch.randn(1000, 64), dim=1) for _ in range(2))
    figures = RetrievalRecall()(text, images)
    assert float(figures["image_to_caption_r@10"]) == pytest.approx(0.01, abs=0.01)
