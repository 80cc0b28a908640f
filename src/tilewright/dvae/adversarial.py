"""Adversarial loss: a discriminator that learns to tell reconstructions from images (VQGAN).

Generator and discriminator learn from one backward pass and one optimizer. This equals the usual
two optimizers, because both networks update from the same reconstructions.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilewright.checks import check_flag, check_number, check_whole
from tilewright.distributed.collectives import sum_over_processes
from tilewright.errors import UserError

LARGEST_WEIGHT = 1e4  # VQGAN's bound of the adaptive weight


class PatchDiscriminator(nn.Sequential):
    """PatchGAN (Isola et al. 2017): images [B, 3, H, W] to logits of "real" [B, 1, h, w].

    It has group normalization in place of batch normalization, so that the logits of an image do
    not depend on the other images of its batch or on the number of processes.

    Args:
        width: channels of the first convolution; each next one doubles them, up to 8 * width.
        layers: convolutions that halve the resolution. Two see patches of 34 pixels, three of 70.

    Raises:
        UserError: a number is not possible.
    """

    def __init__(self, width: int = 64, layers: int = 3):
        check_whole("loss.adversarial.discriminator.width", width)
        check_whole("loss.adversarial.discriminator.layers", layers)
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        modules: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, padding=1), nn.LeakyReLU(0.2)]
        for i, (n_in, n_out) in enumerate(pairwise(widths)):
            stride = 1 if i == layers - 1 else 2
            modules += [
                nn.Conv2d(n_in, n_out, 4, stride, padding=1, bias=False),
                nn.GroupNorm(1, n_out),
                nn.LeakyReLU(0.2),
            ]
        super().__init__(*modules, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)


class AdversarialLoss(nn.Module):
    """Discriminator, its hinge loss, and the weight of the generator's loss.

    Args:
        discriminator: network whose logits are high for images and low for reconstructions.
        weight: weight of the generator's loss. With `adaptive`, the size of its gradient relative
            to the gradient of the other losses.
        start: update at which discriminator and generator's loss begin.
        adaptive: scale the generator's loss so that `weight` is relative.
        learning_rate_ratio: the discriminator's learning rate divided by that of the dVAE.
        betas: the discriminator's betas of AdamW.

    Raises:
        UserError: a number is not possible.
    """

    def __init__(
        self,
        discriminator: nn.Module | None = None,
        weight: float = 0.5,
        start: int = 0,
        adaptive: bool = True,
        learning_rate_ratio: float = 1.0,
        betas: Sequence[float] = (0.5, 0.9),
    ):
        super().__init__()
        check_number("loss.adversarial.weight", weight, 0)
        check_whole("loss.adversarial.start", start, 0)
        check_flag("loss.adversarial.adaptive", adaptive)
        check_number("loss.adversarial.learning_rate_ratio", learning_rate_ratio, 0)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise UserError(
                f"loss.adversarial.betas={list(betas)} is not possible: set two numbers below 1"
            )
        self.discriminator = discriminator or PatchDiscriminator()
        self.weight = weight
        self.start = start
        self.adaptive = adaptive
        self.learning_rate_ratio = learning_rate_ratio
        self.betas = tuple(betas)

    def parameter_group(self) -> dict[str, Any]:
        """Returns the discriminator's group of an optimizer whose learning rate is 1."""
        return {
            "params": list(self.discriminator.parameters()),
            "lr": self.learning_rate_ratio,
            "betas": self.betas,
            "weight_decay": 0.0,
        }

    def logits(self, images: Tensor) -> Tensor:
        """Returns the discriminator's logits of images [B, 3, H, W] in [0, 1]."""
        return self.discriminator(2 * images - 1).float()

    def hinge(self, real: Tensor, fake: Tensor) -> Tensor:
        """Returns the discriminator's loss, a scalar, for logits of images and reconstructions."""
        return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2

    def generator_weight(self, other: Tensor, adversarial: Tensor) -> Tensor:
        """Returns the weight of the generator's loss, a scalar, the same in all processes.

        VQGAN compares gradients at the decoder's last layer. At its output they are known already,
        and do not depend on the decoder's last weights (as in EnCodec, Défossez et al. 2022).

        Args:
            other: gradient [B, num_maps, H, W] of the other losses at the decoder's output.
            adversarial: that of the generator's loss.
        """
        if not self.adaptive:
            return other.new_tensor(self.weight)
        squares = torch.stack([other.square().sum(), adversarial.square().sum()])
        norms = sum_over_processes(squares).sqrt()
        return self.weight * (norms[0] / (norms[1] + 1e-12)).clamp(max=LARGEST_WEIGHT)
