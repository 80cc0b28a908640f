"""The checker's verdict during a training."""

from types import SimpleNamespace

import pytest
import torch

from tilewright.callbacks import alignment
from tilewright.callbacks.alignment import Alignment
from tilewright.data.sources.shapes import ShapesSource
from tilewright.errors import UserError


class Data:
    """Pictures of shapes, their split's name at the end of none of their captions."""

    splits = ("train", "validation", "zeroshot")

    def __init__(self, folder):
        self.source = ShapesSource(
            root=str(folder), image_size=32, train=4, validation=30, zeroshot=30
        )
        self.loaded = self.source.load()
        self.asked = []

    def examples(self, split, count):
        self.asked.append((split, count))
        rows = self.loaded[split].select(range(count)).with_format("torch")
        return [(row["image"] / 255, row["caption"][0]) for row in rows]


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """What is logged where a model draws the validation captions right and no others."""
    data = Data(tmp_path)
    right = {caption: image for image, caption in data.examples("validation", 20)}
    data.asked.clear()

    def draw(captions):
        images = [right.get(caption, torch.ones(3, 32, 32)) for caption in captions]
        return SimpleNamespace(images=torch.stack(images)[:, None])

    model = SimpleNamespace(generate=draw)
    monkeypatch.setattr(alignment.TextToImage, "from_trainer", lambda trainer, module: model)
    logged = {}
    module = SimpleNamespace(log_dict=lambda figures, **_: logged.update(figures))
    trainer = SimpleNamespace(is_global_zero=True, datamodule=data)
    monkeypatch.setattr(alignment, "gathered", lambda *_: torch.no_grad())
    Alignment(captions=20).look(trainer, module)
    return data.asked, logged


def test_it_is_told_by_split_and_kind(measured):
    asked, logged = measured
    assert asked == [("validation", 20), ("zeroshot", 20)]
    assert set(logged) >= {"alignment/validation/one object", "alignment/zeroshot/one object"}
    assert {value for name, value in logged.items() if "/validation/" in name} == {1.0}
    assert logged["alignment/zeroshot/one object"] < 0.2


def test_a_source_without_a_checker_is_refused():
    trainer = SimpleNamespace(datamodule=SimpleNamespace(source="photos"))
    with pytest.raises(UserError, match=r"callbacks\.alignment needs .* data=shapes"):
        Alignment().setup(trainer, None, "fit")
