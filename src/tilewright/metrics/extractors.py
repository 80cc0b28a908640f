"""Feature networks of distances and scores: Inception, and EfficientNet-Lite without a download.

FID, KID and the Inception score are defined on Inception, whose weights must be downloaded. The
weights of EfficientNet-Lite0, -Lite1 and -Lite2 come with Python packages. Values on these carry
the network's name, because values on different networks do not compare.
"""

import contextlib
import functools
import http.client
import logging
import platform
import shutil
import socket
import tempfile
import threading
import urllib.request
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from cleanfid.downloads_helper import check_download_inception, inception_url
from cleanfid.inception_torchscript import InceptionV3W
from torch import Tensor

from tilewright import runs
from tilewright.checks import check_option
from tilewright.efficientnet import SIZES, EfficientNetLite, weights_path
from tilewright.errors import UserError
from tilewright.weight_files import file_digest

logger = logging.getLogger(__name__)

AUTO = "auto"  # Inception, or OFFLINE in its place
OFFLINE = "efficientnet_lite0"
EXTRACTORS = (AUTO, "inception", *SIZES)  # values of extractor=

INCEPTION_FILE = "inception-2015-12-05.pt"
# Folder in which clean-fid keeps the weights, as in cleanfid.features.feature_extractor.
INCEPTION_HOME = Path("./" if platform.system() == "Windows" else "/tmp")
ANSWER_SECONDS = 2.0  # the weights' host must answer within this time, else we are offline
STALL_SECONDS = 15.0  # silence that ends a download

# Name on Inception: prefix of the name on any other network (Fréchet distance, kernel distance,
# classifier score).
GENERIC_NAMES = {"fid": "fd", "kid": "kd", "is": "cs"}


class ExtractorUnavailable(UserError):  # noqa: N818
    """Error raised if a network's weights are not on this machine and cannot be downloaded."""


@dataclass(frozen=True)
class Extractor:
    """A frozen feature network.

    Attributes:
        name: an element of `EXTRACTORS` other than `auto`.
        dimension: D, the number of features.
        size: height and width in pixels that images are resized to.
        digest: first 12 hexadecimal digits of the SHA-256 of the weights file.
        device: device of the network.
        network: maps float RGB [B, 3, size, size] in 0..255 to features [B, D].
        classes: the network's last layer: maps features [B, D] to ImageNet logits [B, C].
    """

    name: str
    dimension: int
    size: int
    digest: str
    device: torch.device
    network: Callable[[Tensor], Tensor]
    classes: Callable[[Tensor], Tensor]

    def metric_name(self, metric: str) -> str:
        """Returns the name of `fid`, `kid` or `is` on this network."""
        return metric_name(self.name, metric)


def metric_name(network: str, metric: str) -> str:
    """Returns the name of `fid`, `kid` or `is` on a network, such as `fd_efficientnet_lite0`.

    Only Inception's values keep the metric's own name.
    """
    return metric if network == "inception" else f"{GENERIC_NAMES[metric]}_{network}"


def possible_networks(extractor: str) -> tuple[str, ...]:
    """Returns the names of the networks that `load_extractor` may return for a choice."""
    return ("inception", OFFLINE) if extractor == AUTO else (extractor,)


def check_extractor(extractor: str, inception_weights: Path | str | None = None) -> None:
    """Checks the choice of a network, as far as this is possible without a download.

    Raises:
        UserError: the choice is unknown, the package of its weights is not installed,
            `inception_weights` does not exist, or the chosen network does not read it.
    """
    check_option("extractor", extractor, EXTRACTORS)
    if extractor in SIZES:
        weights_path(extractor)
        if inception_weights is not None:
            raise UserError(
                f"inception_weights= has no effect on extractor={extractor}: leave one of them out"
            )
    elif inception_weights is not None and not Path(inception_weights).is_file():
        raise UserError(
            f"inception_weights={inception_weights} does not exist: give the path of clean-fid's "
            f"{INCEPTION_FILE}"
        )


def warn_about_judges(run: Path, judges: Collection[str], key: str) -> None:
    """Logs a warning if a network judges images of a dVAE that was trained on it.

    Args:
        run: run or model of the dVAE, or of a prior.
        judges: names of the networks that judge.
        key: configuration key that chooses the network.
    """
    networks = runs.loss_networks(runs.dvae_config(run))
    independent = next((name for name in reversed(SIZES) if name not in networks), "inception")
    for network in networks:
        if network in judges:
            logger.warning(
                "%s is in the loss of the dVAE, so its metrics favor this dVAE: set another "
                "network, such as %s=%s",
                network,
                key,
                independent,
            )


def load_extractor(
    device: torch.device | str,
    extractor: str = AUTO,
    inception_weights: Path | str | None = None,
) -> Extractor:
    """Loads a feature network.

    Args:
        extractor: name of a network, or `auto`: Inception, or EfficientNet-Lite0 with a warning if
            Inception is unavailable.
        inception_weights: see `load_inception`.

    Raises:
        UserError: see `check_extractor`; the weights are corrupt, or `inception` is unavailable.
    """
    check_extractor(extractor, inception_weights)
    if extractor in SIZES:
        return load_efficientnet(extractor, device)
    try:
        return load_inception(device, inception_weights)
    except ExtractorUnavailable as error:
        if extractor != AUTO:
            raise UserError(
                f"{error}: give their path with inception_weights=PATH, or choose another network, "
                f"such as extractor={OFFLINE} (in training, both are keys of callbacks.frechet)"
            ) from error
        _warn_about_replacement(str(error))
        return load_efficientnet(OFFLINE, device)


@functools.cache  # once for all metrics of a command
def _warn_about_replacement(reason: str) -> None:
    logger.warning(
        "%s, so EfficientNet-Lite0 replaces Inception. Metrics carry its name: %s is a Fréchet "
        "distance, but not FID. For FID, KID and the Inception score, give the path of Inception's "
        "weights: inception_weights=PATH. extractor=%s chooses this network without a warning (in "
        "training, both are keys of callbacks.frechet)",
        reason,
        metric_name(OFFLINE, "fid"),
        OFFLINE,
    )


def load_efficientnet(name: str, device: torch.device | str) -> Extractor:
    """Loads an EfficientNet-Lite, trained on ImageNet: 1280 pooled features.

    Args:
        name: a key of `tilewright.efficientnet.SIZES`.

    Raises:
        UserError: the package of the weights is not installed.
    """
    device = torch.device(device)
    model = EfficientNetLite(name).to(device)
    return Extractor(
        name=name,
        dimension=model.dimension,
        size=model.size,
        digest=model.digest,
        device=device,
        network=lambda images: model.features(images / 255),
        classes=model.logits,
    )


def load_inception(device: torch.device | str, weights: Path | str | None = None) -> Extractor:
    """Loads clean-fid's Inception (TorchScript), the network of FID: 2048 features at 299x299.

    Args:
        weights: weights file. None uses clean-fid's own copy and downloads it (95 MB) if needed.

    Raises:
        ExtractorUnavailable: there are no weights and they cannot be downloaded.
        UserError: the file is not this network.
    """
    device = torch.device(device)
    path = INCEPTION_HOME / INCEPTION_FILE if weights is None else Path(weights)
    if weights is None and not path.is_file():
        _download(path)
    network = _load_torchscript(path, device)

    def classes(features: Tensor) -> Tensor:  # without the bias, as in Salimans et al. 2016
        return features @ network.base.output.weight.T

    return Extractor("inception", 2048, 299, file_digest(path), device, network, classes)


def _load_torchscript(path: Path, device: torch.device) -> InceptionV3W:
    # clean-fid takes a folder and opens INCEPTION_FILE in it, so a file of any name is copied.
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        shutil.copyfile(path, Path(folder) / INCEPTION_FILE)
        warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
        try:
            model = InceptionV3W(folder, download=False)
        except (RuntimeError, AttributeError) as error:
            raise UserError(
                f"{path} is corrupt or not clean-fid's {INCEPTION_FILE}: delete it, or give "
                "another file with inception_weights=PATH"
            ) from error
    return model.to(device).eval().requires_grad_(False)


def _download(path: Path) -> None:
    """Downloads Inception's weights to `path`, with timeouts that clean-fid does not have."""
    if not _host_answers(inception_url, ANSWER_SECONDS):
        raise ExtractorUnavailable(
            f"Inception's weights are missing ({path}) and their host does not answer"
        )
    logger.info("Downloading Inception's weights (95 MB) to %s", path)
    try:
        # A temporary folder, because an interrupted download must not pass for the weights.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder, _socket_timeout(STALL_SECONDS):
            Path(check_download_inception(folder)).replace(path)
    except (OSError, http.client.HTTPException) as error:
        raise ExtractorUnavailable(
            f"Inception's weights are missing ({path}) and their download failed ({error})"
        ) from error


def _host_answers(url: str, seconds: float) -> bool:
    """Returns True if `url` can be opened within `seconds`, including the DNS lookup."""
    answered = threading.Event()

    def open_url() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            urllib.request.urlopen(url, timeout=seconds).close()
            answered.set()

    # A socket's timeout does not cover the DNS lookup, which may take minutes. A daemon thread
    # can be abandoned.
    thread = threading.Thread(target=open_url, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Sets the default timeout of sockets, because clean-fid's downloader sets none."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)
