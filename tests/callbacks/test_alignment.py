"""Alignment callback: logged shares per split and caption category."""

from types import SimpleNamespace

import pytest
import torch

from tilewright.callbacks import AlignmentCallback, alignment
from tilewright.data.sources.shapes import ShapesSource
from tilewright.errors import UserError


class Data:
    """Data module of shapes that records the requested splits."""

    splits = ("train", "validation", "zeroshot")

    def __init__(self, folder):
        self.source = ShapesSource(
            root=str(folder), image_size=32, train=4, validation=30, zeroshot=30
        )
        self.loaded = self.source.load()
        self.requests = []

    def examples(self, split, count):
        self.requests.append((split, count))
        rows = self.loaded[split].select(range(count)).with_format("torch")
        return [(row["image"] / 255, row["caption"][0]) for row in rows]


@pytest.fixture
def measurement(monkeypatch, tmp_path):
    """Measures a model that generates correct images for validation captions only."""
    data = Data(tmp_path)
    correct = {caption: image for image, caption in data.examples("validation", 20)}
    data.requests.clear()

    def generate(captions):
        images = [correct.get(caption, torch.ones(3, 32, 32)) for caption in captions]
        return SimpleNamespace(images=torch.stack(images)[:, None])

    model = SimpleNamespace(generate=generate)
    monkeypatch.setattr(alignment.TextToImage, "from_trainer", lambda trainer, module: model)
    logged = {}
    module = SimpleNamespace(log_dict=lambda metrics, **_: logged.update(metrics))
    trainer = SimpleNamespace(is_global_zero=True, datamodule=data)
    monkeypatch.setattr(alignment, "gathered_weights", lambda *_: torch.no_grad())
    AlignmentCallback(captions=20).measure(trainer, module)
    return data.requests, logged


def test_every_process_logs_the_shares_that_the_first_one_measures(monkeypatch):
    logged = {}
    module = SimpleNamespace(log_dict=lambda metrics, **_: logged.update(metrics))
    monkeypatch.setattr(alignment, "gathered_weights", lambda *_: torch.no_grad())
    monkeypatch.setattr(alignment, "gather_objects", lambda own: [{"alignment/x": 0.5}, own])
    AlignmentCallback().measure(SimpleNamespace(is_global_zero=False), module)
    assert logged == {"alignment/x": 0.5}


def test_it_logs_a_share_per_split_and_category(measurement):
    requests, logged = measurement
    assert requests == [("validation", 20), ("zeroshot", 20)]
    assert set(logged) >= {"alignment/validation/one object", "alignment/zeroshot/one object"}
    assert {value for name, value in logged.items() if "/validation/" in name} == {1.0}
    assert logged["alignment/zeroshot/one object"] < 0.2


def test_a_source_without_a_checker_is_a_user_error():
    trainer = SimpleNamespace(datamodule=SimpleNamespace(source="photos"))
    with pytest.raises(UserError, match=r"callbacks\.alignment needs .* data=shapes"):
        AlignmentCallback().setup(trainer, None, "fit")
