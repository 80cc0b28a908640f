"""Adversarial loss of VQGAN: a discriminator that separates reconstructions from images.

One backward pass and one optimizer train both networks. This equals two optimizers that update both
from the same reconstructions, as in LlamaGen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilewright.checks import check_flag, check_number, check_whole
from tilewright.distributed.collectives import sum_over_processes
from tilewright.errors import UserError, first_line
from tilewright.training.optimizers import check_betas

LARGEST_WEIGHT = 1e4  # VQGAN's bound of the adaptive weight


class PatchDiscriminator(nn.Sequential):
    """PatchGAN (Isola et al. 2017): images [B, 3, H, W] to logits of "real" [B, 1, h, w].

    It has group normalization in place of batch normalization, so that the logits of an image do
    not depend on the other images of its batch or on the number of processes.

    Args:
        width: channels of the first convolution; each following one doubles them, up to 8 * width.
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


ImageLoss = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class AdversarialStep:
    """Losses of a training step with a discriminator.

    Attributes:
        image_loss: value of the other losses of the decoder's output, with the gradient of these
            and the generator's loss.
        terms: terms to log.
        discriminator_loss: the discriminator's loss.
    """

    image_loss: Tensor
    terms: dict[str, Tensor]
    discriminator_loss: Tensor


class AdversarialLoss(nn.Module):
    """Discriminator, its hinge loss, and the weight of the generator's loss.

    Args:
        discriminator: network whose logits are high for images and low for reconstructions.
        weight: weight of the generator's loss. With `adaptive`, the size of its gradient relative
            to the gradient of the other losses.
        start: first update with the discriminator and the generator's loss.
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
        check_betas("loss.adversarial.betas", betas)
        self.discriminator = discriminator or PatchDiscriminator()
        self.weight = weight
        self.start = start
        self.adaptive = adaptive
        self.learning_rate_ratio = learning_rate_ratio
        self.betas = tuple(betas)

    def check_size(self, image_size: int) -> None:
        """Checks that the discriminator can read the images. Its first update may come late.

        Raises:
            UserError: the images are too small.
        """
        first = next(self.discriminator.parameters())
        try:
            with torch.no_grad():
                self.logits(torch.zeros(1, 3, image_size, image_size, device=first.device))
        except RuntimeError as error:
            raise UserError(
                f"the discriminator cannot read images of {image_size} pixels "
                f"({first_line(error)}): lower loss.adversarial.discriminator.layers"
            ) from error

    def parameter_group(self) -> dict[str, Any]:
        """Returns the discriminator's group of an optimizer."""
        return {
            "params": list(self.discriminator.parameters()),
            "betas": self.betas,
            "weight_decay": 0.0,
        }

    def logits(self, images: Tensor) -> Tensor:
        """Returns the discriminator's logits of images [B, 3, H, W] in [0, 1]."""
        return self.discriminator(2 * images - 1).float()

    def forward(
        self,
        images: Tensor,
        maps: Tensor,
        to_images: Callable[[Tensor], Tensor],
        image_loss: ImageLoss,
        weight: Tensor | float,
        update: int,
    ) -> AdversarialStep:
        """Returns the losses of a training step.

        Gradients of the generator's losses stop at the decoder's output, where they give the
        adaptive weight. Their sum goes through the dVAE in one backward pass.

        Args:
            images: [B, 3, H, W] in [0, 1].
            maps: [B, num_maps, H, W], the decoder's output.
            to_images: returns the reconstructions [B, 3, H, W] in [0, 1] of maps.
            image_loss: returns the other losses of images, maps and reconstructions, and terms.
            weight: weight of the batch's mean among the processes.
            update: index of the update.
        """
        if update < self.start:
            loss, terms = image_loss(images, maps, to_images(maps))
            # DDP and FSDP expect a gradient of every weight.
            nothing = 0 * torch.stack([p.sum() for p in self.parameters()]).sum()
            return AdversarialStep(loss, terms, nothing)
        output = maps.detach().float().requires_grad_()
        reconstructions = to_images(output)
        loss, terms = image_loss(images, output, reconstructions)
        fake = self.logits(reconstructions)
        generator = -fake.mean()
        # Gradients of sums: those of means would underflow in fp16.
        gradient, generator_gradient = (
            torch.autograd.grad(value * output.numel(), output, retain_graph=True)[0]
            for value in (loss, generator)
        )
        ratio = self.generator_weight(weight * gradient, weight * generator_gradient)
        gradient = (gradient + ratio * generator_gradient) / output.numel()
        discriminator = hinge_loss(self.logits(images), fake)
        terms |= {"generator": generator, "discriminator": discriminator, "generator_weight": ratio}
        return AdversarialStep(with_gradient(loss, maps, gradient), terms, discriminator)

    def generator_weight(self, other: Tensor, generator: Tensor) -> Tensor:
        """Returns the weight of the generator's loss, a scalar, the same in all processes.

        VQGAN compares gradients at the decoder's last layer. At its output they are known already,
        and do not depend on the decoder's last weights (as in EnCodec, Défossez et al. 2022).

        Args:
            other: gradient [B, num_maps, H, W] of the other losses at the decoder's output.
            generator: gradient of the generator's loss.
        """
        if not self.adaptive:
            return other.new_tensor(self.weight)
        squares = torch.stack([other.square().sum(), generator.square().sum()])
        norms = sum_over_processes(squares).sqrt()
        return self.weight * (norms[0] / (norms[1] + 1e-12)).clamp(max=LARGEST_WEIGHT)


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Returns the discriminator's loss, a scalar, for logits of images and reconstructions."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def with_gradient(value: Tensor, output: Tensor, gradient: Tensor) -> Tensor:
    """Returns a scalar with this value, whose gradient at `output` is `gradient`."""
    product = (output * gradient.detach()).sum()
    return value.detach() + product - product.detach()
