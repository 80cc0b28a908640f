"""The choice of the best of N, measured."""

from types import SimpleNamespace

import pytest
import torch

from tilewright.evaluations import best_of
from tilewright.evaluations.best_of import BestOf


class Drawn:
    """A model whose candidate number i is a picture of gray i / 7; odd captions like dark ones."""

    def tokens(self, captions, n, **how):
        return torch.arange(n).view(1, n, 1, 1).expand(len(captions), n, 2, 2)

    def decode(self, tokens):
        gray = tokens.float()[:, :, None] / 7
        return gray.repeat_interleave(16, 3).repeat_interleave(16, 4).expand(-1, -1, 3, -1, -1)

    def scores(self, ranker, captions, tokens, batch_size):
        return ranker(self, captions, tokens)


def lightest(model, captions, tokens):
    return tokens[:, :, 0, 0].float()


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """Distances of the chosen pictures, by count: their mean gray takes the distance's place."""
    monkeypatch.setattr(best_of.TextToImage, "from_run", lambda run, device: Drawn())
    extractor = SimpleNamespace(name="eye", digest="0", figure=lambda name: f"{name}_eye")
    monkeypatch.setattr(best_of, "find_extractor", lambda device, weights: extractor)
    monkeypatch.setattr(
        best_of, "write_folder", lambda images, folder: images if folder.name == "chosen" else None
    )
    monkeypatch.setattr(best_of, "folder_features", lambda images, *how, **more: images)
    monkeypatch.setattr(best_of, "frechet_distance", lambda real, chosen: float(chosen.mean()))
    data = SimpleNamespace(
        checker=None,
        present=lambda splits: ["validation"],
        cache=tmp_path / "codes",
        examples=lambda split, count: [
            (torch.zeros(3, 32, 32), "a"),
            (torch.zeros(3, 32, 32), "b"),
        ],
    )

    def measure(ranker, counts):
        how = {"seed": 0, "device": "cpu", "folder": tmp_path / "out"}
        results = BestOf(ranker, counts=counts)(tmp_path, data, **how)
        assert (tmp_path / "out" / "best_of.png").is_file()
        assert {result.metric for result in results} == {"fid_eye"}
        return {result.settings["best_of"]: result.value for result in results}

    return measure


def test_more_candidates_only_add_to_the_choice(measured):
    assert measured(lightest, [8, 1, 4]) == pytest.approx({1: 0, 4: 3 / 7, 8: 1})


def test_the_ranker_chooses_for_each_caption(measured):
    def opposite_tastes(model, captions, tokens):
        return lightest(model, captions, tokens) * torch.tensor([[1.0], [-1.0]])

    assert measured(opposite_tastes, [1, 8]) == pytest.approx({1: 0, 8: (1 + 0) / 2})
