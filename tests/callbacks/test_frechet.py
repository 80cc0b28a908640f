"""The Fréchet distance during a training."""

import threading
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

from tilewright.callbacks import frechet
from tilewright.dvae import DiscreteVAE
from tilewright.evaluations import distributions, features, generation, reconstruction
from tilewright.metrics.extractors import Extractor


class Module(pl.LightningModule):
    """As much of a stage as the callback sees."""

    def __init__(self):
        super().__init__()
        self.network = DiscreteVAE(image_size=16, grid=4, num_tokens=8, n_hid=8, n_init=8)
        self.logged = {}

    def log(self, name, value, **_):
        self.logged[name] = value


class Data:
    checker = None

    def present(self, splits):
        return splits

    def __init__(self, images, cache=None, image_tokenizer=None):
        self.images, self.cache, self.image_tokenizer = images, cache, image_tokenizer

    def examples(self, split, count):
        return [(image, f"caption {i}") for i, image in enumerate(self.images[:count])]


def trainer_with(images, rank=0, processes=1, **how):
    return SimpleNamespace(
        global_rank=rank,
        world_size=processes,
        datamodule=Data(images, **how),
    )


@pytest.fixture
def _cheap_features(monkeypatch):
    network = lambda images: images.mean(dim=(2, 3))  # noqa: E731
    extractor = Extractor("means", 3, 8, "0", torch.device("cpu"), network, torch.nn.Identity())
    for place in (frechet, features):
        monkeypatch.setattr(place, "load_extractor", lambda *_: extractor)


@pytest.mark.usefixtures("_cheap_features")
def test_a_single_picture_does_not_end_the_training(caplog):
    module = Module()
    callback = frechet.FrechetDistance()
    callback.look(trainer_with(torch.rand(1, 3, 16, 16)), module)
    assert not module.logged
    assert "1 readable picture" in caplog.text


@pytest.mark.usefixtures("_cheap_features")
def test_a_dvaes_figure_is_evals(monkeypatch, tmp_path):
    images, module = torch.rand(70, 3, 16, 16), Module()
    trainer = trainer_with(images, cache=tmp_path / "codes")
    frechet.FrechetDistance(images=70).look(trainer, module)
    monkeypatch.setattr(reconstruction.runs, "load_network", lambda *_: module.network)
    how = {"seed": 0, "device": "cpu", "folder": tmp_path / "eval"}
    evaluation = reconstruction.Reconstruction(splits=["validation"])
    results = evaluation(tmp_path, trainer.datamodule, **how)
    (figure,) = [result for result in results if result.metric == "fd_means"]
    assert module.logged == {"validation/fd_means": figure.value}
    assert figure.value > 1


@pytest.mark.usefixtures("_cheap_features")
def test_a_priors_figure_is_evals(monkeypatch, tmp_path):
    images, module = torch.rand(20, 3, 16, 16), Module()

    class Model:
        def generate(self, captions, sampling=None, seed=0):
            shades = [float(caption.split()[1]) / 40 for caption in captions]
            images = torch.tensor(shades)[:, None, None, None, None].expand(-1, 1, 3, 16, 16)
            return SimpleNamespace(images=images)

    monkeypatch.setattr(frechet.TextToImage, "from_trainer", lambda *_: Model())
    monkeypatch.setattr(generation.TextToImage, "from_run", lambda *_: Model())
    trainer = trainer_with(images, cache=tmp_path / "codes", image_tokenizer="a dVAE")
    frechet.FrechetDistance(images=20).look(trainer, module)
    how = {"seed": 0, "device": "cpu", "folder": tmp_path / "eval"}
    (figure,) = distributions.FrechetInceptionDistance()(tmp_path, trainer.datamodule, **how)
    assert module.logged == {"validation/fd_means": figure.value}
    assert figure.value > 1


@pytest.mark.usefixtures("_cheap_features")
def test_processes_share_the_pictures(monkeypatch):
    """Two threads in the place of two processes: both have the figure of one alone."""
    images, alone = torch.rand(9, 3, 16, 16), Module()
    frechet.FrechetDistance().look(trainer_with(images), alone)

    gathered, meeting, sizes = {}, threading.Barrier(2, timeout=60), []

    def all_gather_object(shares, own):
        rank = int(threading.current_thread().name)
        gathered[rank] = own
        sizes.append(len(own))
        meeting.wait()
        shares[:] = [gathered[0], gathered[1]]
        meeting.wait()

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    modules = [Module(), Module()]
    threads = []
    for rank, module in enumerate(modules):
        module.network = alone.network
        call = (trainer_with(images, rank, 2), module)
        threads.append(
            threading.Thread(target=frechet.FrechetDistance().look, args=call, name=str(rank))
        )
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(sizes) == [4, 4, 5, 5]
    for module in modules:
        assert module.logged["validation/fd_means"] == pytest.approx(
            alone.logged["validation/fd_means"], rel=1e-5
        )
