"""The Fréchet distance during a training."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from tilewright.callbacks import frechet
from tilewright.dvae import DiscreteVAE


class Module(pl.LightningModule):
    """As much of a stage as the callback sees."""

    def __init__(self):
        super().__init__()
        self.network = DiscreteVAE(image_size=16, grid=4, num_tokens=8, n_hid=8, n_init=8)
        self.logged = {}

    def log(self, name, value, **_):
        self.logged[name] = value


def trainer_with(images):
    data = SimpleNamespace(
        image_tokenizer=None, examples=lambda split, count: [(x, "a caption") for x in images]
    )
    return SimpleNamespace(
        sanity_checking=False, global_step=1, max_steps=9, is_global_zero=True, datamodule=data
    )


@pytest.fixture
def _cheap_features(monkeypatch):
    from tilewright.metrics.extractors import Extractor

    network = lambda images: images.mean(dim=(2, 3))  # noqa: E731
    extractor = Extractor("means", 3, 8, "0", torch.device("cpu"), network)
    monkeypatch.setattr(frechet, "find_extractor", lambda *_: extractor)


@pytest.mark.usefixtures("_cheap_features")
def test_it_is_measured_at_every_so_many_validations():
    callback, module = frechet.FrechetDistance(every=2), Module()
    trainer = trainer_with(torch.rand(4, 3, 16, 16))
    callback.on_validation_epoch_end(trainer, module)
    assert not module.logged
    callback.on_validation_epoch_end(trainer, module)
    assert module.logged["validation/fd_means"] > 0


@pytest.mark.usefixtures("_cheap_features")
def test_a_single_picture_does_not_end_the_training(caplog):
    module = Module()
    callback = frechet.FrechetDistance()
    callback.on_validation_epoch_end(trainer_with(torch.rand(1, 3, 16, 16)), module)
    assert not module.logged
    assert "one readable picture" in caplog.text
