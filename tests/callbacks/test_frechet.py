"""FrechetDistance: same values as eval, shared between processes."""

import math
import threading
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf

from tilewright import runs
from tilewright.callbacks import frechet
from tilewright.dvae import DiscreteVAE
from tilewright.errors import UserError
from tilewright.evaluations import distributions, features, generation, reconstruction
from tilewright.metrics import extractors
from tilewright.metrics.extractors import Extractor, ExtractorUnavailable


class Module(pl.LightningModule):
    """Module with the parts of a stage that the callback uses."""

    def __init__(self):
        super().__init__()
        self.network = DiscreteVAE(image_size=16, grid=4, num_tokens=8, n_hid=8, n_init=8)
        self.logged = {}

    def log(self, name, value, **_):
        self.logged[name] = value


class Data:
    checker = None
    splits = ("train", "validation")

    def __init__(self, images, cache=None, image_tokenizer=None):
        self.images, self.cache, self.image_tokenizer = images, cache, image_tokenizer

    def examples(self, split, count):
        return [(image, f"caption {i}") for i, image in enumerate(self.images[:count])]


def trainer_with(images, rank=0, processes=1, **data):
    return SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        global_rank=rank,
        world_size=processes,
        datamodule=Data(images, **data),
    )


def measure(callback, trainer, module):
    callback.setup(trainer, module, "fit")
    callback.measure(trainer, module)


@pytest.fixture
def _cheap_features(monkeypatch):
    network = lambda images: images.mean(dim=(2, 3))  # noqa: E731
    extractor = Extractor("means", 3, 8, "0", torch.device("cpu"), network, torch.nn.Identity())
    for module in (frechet, features):
        monkeypatch.setattr(module, "load_extractor", lambda *_: extractor)


@pytest.mark.usefixtures("_cheap_features")
def test_a_single_image_warns_and_does_not_end_the_training(caplog):
    module = Module()
    measure(frechet.FrechetDistance(), trainer_with(torch.rand(1, 3, 16, 16)), module)
    assert not module.logged
    assert "1 readable image" in caplog.text


@pytest.mark.parametrize("stage", ["dvae", "prior"])
@pytest.mark.parametrize(
    ("settings", "is_judge"),
    [
        ({"model": {"perceptual": {"network": "means"}}}, True),
        ({"model": {"perceptual": {"network": "lpips"}}}, False),
        ({"model": {"perceptual": None}}, False),
        ({"model": {"perceptual": None}, "perceptual_networks": ["means"]}, True),
    ],
)
@pytest.mark.usefixtures("_cheap_features")
def test_a_judge_that_is_in_the_loss_of_the_dvae_warns(tmp_path, caplog, stage, settings, is_judge):
    dvae = tmp_path / "dvae" if stage == "prior" else tmp_path
    runs.create(tmp_path, OmegaConf.create({"stage": stage}))
    runs.create(dvae, OmegaConf.create({"stage": "dvae", **settings}))
    callback = frechet.FrechetDistance(run=str(tmp_path))
    callback.setup(trainer_with(torch.rand(4, 3, 16, 16)), Module(), "fit")
    assert ("means is in the loss of the dVAE" in caplog.text) == is_judge
    assert ("callbacks.frechet.extractor=efficientnet_lite2" in caplog.text) == is_judge


@pytest.mark.usefixtures("_cheap_features")
def test_an_undefined_distance_warns_and_is_logged_as_nan(caplog, monkeypatch):
    monkeypatch.setattr("scipy.linalg.sqrtm", lambda matrix, disp: (matrix + 1j, 0.0))
    module = Module()
    trainer = trainer_with(torch.rand(4, 3, 16, 16))
    trainer.global_step = 70
    measure(frechet.FrechetDistance(), trainer, module)
    assert math.isnan(module.logged["validation/fd_means"])
    assert "No Fréchet distance at update 70" in caplog.text
    assert "Imaginary component" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({"images": n}, f"callbacks.frechet.images={n} is not possible") for n in (0, 1, 2.5)),
        *(({"every_n_validations": n}, f"every_n_validations={n} is not possible")
          for n in (0, -1, 1.5)),
        ({"extractor": "nope"}, "extractor=nope is not possible"),
        ({"inception_weights": "/nowhere.pt"}, "inception_weights=/nowhere.pt does not exist"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused_before_the_training(settings, message):
    with pytest.raises(UserError, match=f"^{message}"):
        frechet.FrechetDistance(**settings)


@pytest.mark.usefixtures("_cheap_features")
def test_a_dvaes_distance_equals_that_of_eval(monkeypatch, tmp_path):
    images, module = torch.rand(70, 3, 16, 16), Module()
    trainer = trainer_with(images, cache=tmp_path / "codes")
    measure(frechet.FrechetDistance(images=70), trainer, module)
    monkeypatch.setattr(reconstruction.runs, "load_network", lambda *_: module.network)
    arguments = {"seed": 0, "device": "cpu", "folder": tmp_path / "eval"}
    evaluation = reconstruction.Reconstruction(splits=["validation"])
    results = evaluation(tmp_path, trainer.datamodule, **arguments)
    (result,) = [r for r in results if r.metric == "fd_means"]
    assert module.logged == {"validation/fd_means": result.value}
    assert result.value > 1


@pytest.mark.usefixtures("_cheap_features")
def test_a_priors_distance_equals_that_of_eval(monkeypatch, tmp_path):
    images, module = torch.rand(20, 3, 16, 16), Module()

    class Model:
        def generate(self, captions, sampling=None, seed=0):
            shades = [float(caption.split()[1]) / 40 for caption in captions]
            images = torch.tensor(shades)[:, None, None, None, None].expand(-1, 1, 3, 16, 16)
            return SimpleNamespace(images=images)

    monkeypatch.setattr(frechet.TextToImage, "from_trainer", lambda *_: Model())
    monkeypatch.setattr(generation.TextToImage, "from_run", lambda *_: Model())
    monkeypatch.setattr(generation.runs, "trained_steps", lambda *_: 70)
    trainer = trainer_with(images, cache=tmp_path / "codes", image_tokenizer="a dVAE")
    measure(frechet.FrechetDistance(images=20), trainer, module)
    arguments = {"seed": 0, "device": "cpu", "folder": tmp_path / "eval"}
    (result,) = distributions.FrechetInceptionDistance()(tmp_path, trainer.datamodule, **arguments)
    assert module.logged == {"validation/fd_means": result.value}
    assert result.value > 1


@pytest.mark.usefixtures("_cheap_features")
def test_processes_share_the_images_and_agree(monkeypatch):
    """Imitates two processes by two threads, which log the distance of one process."""
    images, alone = torch.rand(9, 3, 16, 16), Module()
    measure(frechet.FrechetDistance(), trainer_with(images), alone)

    gathered, barrier, sizes = {}, threading.Barrier(2, timeout=60), []

    def gather_objects(own):
        gathered[threading.current_thread().name] = own
        if not isinstance(own, str):
            sizes.append(len(own))
        barrier.wait()
        shares = [gathered["0"], gathered["1"]]
        barrier.wait()
        return shares

    monkeypatch.setattr(frechet, "gather_objects", gather_objects)
    modules = [Module(), Module()]
    threads = []
    for rank, module in enumerate(modules):
        module.network = alone.network
        call = (frechet.FrechetDistance(), trainer_with(images, rank, 2), module)
        threads.append(threading.Thread(target=measure, args=call, name=str(rank)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(sizes) == [4, 4, 5, 5]
    for module in modules:
        assert module.logged["validation/fd_means"] == pytest.approx(
            alone.logged["validation/fd_means"], rel=1e-5
        )


@pytest.mark.usefixtures("_cheap_features")
def test_processes_use_one_network_if_a_node_has_no_weights_of_inception(monkeypatch):
    def gather_objects(own):  # the other process has found the weights
        return [own, "inception"] if isinstance(own, str) else [own]

    network = lambda images: 2 * images.mean(dim=(2, 3))  # noqa: E731
    offline = Extractor("offline", 3, 8, "0", torch.device("cpu"), network, torch.nn.Identity())
    monkeypatch.setattr(frechet, "gather_objects", gather_objects)
    monkeypatch.setattr(frechet, "load_efficientnet", lambda name, device: offline)
    module = Module()
    measure(frechet.FrechetDistance(), trainer_with(torch.rand(4, 3, 16, 16)), module)
    assert set(module.logged) == {"validation/fd_offline"}


def test_the_chosen_network_measures_and_names_the_metric(monkeypatch):
    monkeypatch.setattr(frechet, "frechet_distance", lambda real, generated: real.shape[1])
    module, callback = Module(), frechet.FrechetDistance(extractor="efficientnet_lite1")
    assert callback.metrics == ("validation/fd_efficientnet_lite1",)
    measure(callback, trainer_with(torch.rand(2, 3, 16, 16)), module)
    assert module.logged == {"validation/fd_efficientnet_lite1": 1280}


def test_a_training_without_its_chosen_network_does_not_start(monkeypatch):
    def fail(*_):
        raise ExtractorUnavailable("no weights")

    monkeypatch.setattr(extractors, "load_inception", fail)
    callback = frechet.FrechetDistance(extractor="inception")
    assert callback.metrics == ("validation/fid",)
    with pytest.raises(UserError, match=r"no weights: .* callbacks\.frechet"):
        callback.setup(trainer_with(torch.rand(2, 3, 16, 16)), Module(), "fit")
