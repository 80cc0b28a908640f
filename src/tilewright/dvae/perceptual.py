"""Perceptual loss: distance of two images in the features of a network trained on ImageNet.

Many different sharp images share the same tokens. A squared error is lowest for their mean, which
is blurred. Features respond to edges and textures even if these are slightly displaced.
"""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilewright.checks import check_number, check_option
from tilewright.efficientnet import SIZES, EfficientNetLite
from tilewright.errors import UserError, first_line

LPIPS = "lpips"
NETWORKS = (*SIZES, LPIPS)
VGG_FILE = "vgg16-397923af.pth"  # torchvision's name of its weights


class PerceptualLoss:
    """Distance between images and reconstructions in the feature maps of a frozen network.

    It is not a module, so that checkpoints and averaged weights hold no copy of the network.

    Args:
        network: `efficientnet_lite0`, `efficientnet_lite1` or `efficientnet_lite2`, whose weights
            come with a Python package, or `lpips` (Zhang et al. 2018) on VGG16.
        weight: weight of the distance in the loss, whose other terms are in nats per pixel value.
        vgg_weights: path of torchvision's VGG16 weights. None downloads them (528 MB).

    Raises:
        UserError: the network is unknown, or its package or weights are missing.
    """

    def __init__(
        self,
        network: str = "efficientnet_lite0",
        weight: float = 2.0,
        vgg_weights: Path | str | None = None,
    ):
        check_option("loss.perceptual.network", network, NETWORKS)
        check_number("loss.perceptual.weight", weight, 0, exclusive=True)
        self.network = network
        self.weight = weight
        self.distance: nn.Module
        if network == LPIPS:
            self.distance = _load_lpips(vgg_weights)
        else:
            self.distance = FeatureDistance(EfficientNetLite(network))
        self._device = torch.device("cpu")

    def __deepcopy__(self, memo: dict) -> "PerceptualLoss":
        return self  # frozen, so the averaged module shares it

    def __call__(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Returns the mean distance over a batch, a scalar.

        Args:
            images, reconstructions: [B, 3, H, W] in [0, 1]. Gradients reach the reconstructions.
        """
        if images.device != self._device:
            self._device = images.device
            # In a validation, weights of inference mode would be of no use to the training.
            with torch.inference_mode(False):
                self.distance.to(images.device)
        return self.distance(images, reconstructions).mean()


class FeatureDistance(nn.Module):
    """Squared distance of unit-length feature vectors, as in LPIPS without learned weights.

    Args:
        network: the frozen feature network.
    """

    def __init__(self, network: EfficientNetLite):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Returns the distances [B], means over positions and strides."""
        with torch.no_grad():
            targets = self.network.feature_maps(images)
        features = self.network.feature_maps(reconstructions)
        distances = [
            (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1))
            .square()
            .sum(dim=1)
            .mean(dim=(1, 2))
            for a, b in zip(features, targets, strict=True)
        ]
        return torch.stack(distances).mean(dim=0)


class UnitLPIPS(nn.Module):
    """LPIPS of images in [0, 1]."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        return self.network(images, reconstructions, normalize=True)


def _load_lpips(vgg_weights: Path | str | None) -> nn.Module:
    """Loads LPIPS on VGG16, frozen.

    Raises:
        UserError: the package or the weights are missing, or the weights are another network's.
    """
    try:
        import lpips
    except ImportError as error:
        raise UserError(
            "loss.perceptual.network=lpips needs the package lpips: pip install 'tilewright[lpips]'"
        ) from error
    weights = _load_vgg(vgg_weights)
    # Its constructor draws random weights, and calls torchvision in a deprecated way.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    try:
        # lpips.slice2.5 is the layer features.5 of torchvision.
        own = {name: f"features.{name.partition('.')[2]}" for name in network.net.state_dict()}
        network.net.load_state_dict({name: weights[source] for name, source in own.items()})
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"loss.perceptual.vgg_weights={vgg_weights} is not VGG16: give torchvision's {VGG_FILE}"
        ) from error
    return UnitLPIPS(network.requires_grad_(False).eval())


def _load_vgg(path: Path | str | None) -> dict[str, Tensor]:
    """Returns torchvision's VGG16 weights.

    Raises:
        UserError: they cannot be read or downloaded.
    """
    from torchvision.models import VGG16_Weights  # slow to import

    try:
        if path is None:
            return dict(VGG16_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True))
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(
            f"loss.perceptual.network=lpips needs VGG16's weights, but they cannot be read "
            f"({first_line(error)}): set loss.perceptual.vgg_weights to the path of {VGG_FILE}, or "
            "loss.perceptual.network=efficientnet_lite0"
        ) from error
