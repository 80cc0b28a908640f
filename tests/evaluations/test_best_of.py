"""Tests of metric=best_of on data without a checker."""

from types import SimpleNamespace

import pytest
import torch

from tilewright.evaluations import best_of, features
from tilewright.evaluations.best_of import BestOf


class GrayModel:
    """Model whose candidate i is an image of gray i / 7."""

    def check_supports(self, sampling, ranker):
        pass

    def sample_tokens(self, captions, n, **settings):
        return torch.arange(n).view(1, n, 1, 1).expand(len(captions), n, 2, 2)

    def decode(self, tokens, batch_size):
        gray = tokens.float()[:, :, None] / 7
        return gray.repeat_interleave(16, 3).repeat_interleave(16, 4).expand(-1, -1, 3, -1, -1)

    def score(self, ranker, captions, tokens, batch_size):
        return ranker(self, captions, tokens)


def prefer_light(model, captions, tokens):
    return tokens[:, :, 0, 0].float()


@pytest.fixture
def measure(monkeypatch, tmp_path):
    """Runs the evaluation with the mean gray in place of the Fréchet distance, by count."""
    monkeypatch.setattr(best_of.TextToImage, "from_run", lambda run, device: GrayModel())
    extractor = SimpleNamespace(name="eye", digest="0", metric_name=lambda name: f"{name}_eye")
    monkeypatch.setattr(features, "load_extractor", lambda *_: extractor)
    monkeypatch.setattr(features, "write_image_folder", lambda images, folder: images)
    monkeypatch.setattr(features, "folder_features", lambda images, *args, **kwargs: images)
    monkeypatch.setattr(features, "frechet_distance", lambda real, chosen: float(chosen.mean()))
    data = SimpleNamespace(
        checker=None,
        splits=["validation"],
        cache=tmp_path / "codes",
        examples=lambda split, count: [(torch.zeros(3, 32, 32), caption) for caption in "ab"],
    )

    def measure(ranker, counts):
        folder = tmp_path / "out"
        results = BestOf(ranker, counts)(tmp_path, data, seed=0, device="cpu", folder=folder)
        assert (folder / "best_of.png").is_file()
        assert {result.metric for result in results} == {"fid_eye"}
        return {result.settings["best_of"]: result.value for result in results}

    return measure


def test_candidates_of_a_small_count_are_the_first_of_a_larger_one(measure):
    assert measure(prefer_light, [8, 1, 4]) == pytest.approx({1: 0, 4: 3 / 7, 8: 1})


def test_the_ranker_chooses_for_each_caption(measure):
    def prefer_light_then_dark(model, captions, tokens):
        return prefer_light(model, captions, tokens) * torch.tensor([[1.0], [-1.0]])

    assert measure(prefer_light_then_dark, [1, 8]) == pytest.approx({1: 0, 8: (1 + 0) / 2})
