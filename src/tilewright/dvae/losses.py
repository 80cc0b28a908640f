"""The two terms of the dVAE's evidence lower bound (section 2.1, appendices A.2 and A.3).

All of it is computed in fp32: under bf16 the logit of a pixel near black or white loses its digits.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

# The paper's epsilon: pixels are moved into [0.1, 0.9], where the logit-Laplace is well behaved.
LOGIT_LAPLACE_EPS = 0.1


def map_pixels(images: Tensor) -> Tensor:
    """Pixels in [0, 1] to [eps, 1 - eps], the logit-Laplace's home."""
    return (1 - 2 * LOGIT_LAPLACE_EPS) * images + LOGIT_LAPLACE_EPS


def unmap_pixels(images: Tensor) -> Tensor:
    """The inverse of `map_pixels`; what lies outside the map's range comes out outside [0, 1]."""
    return (images - LOGIT_LAPLACE_EPS) / (1 - 2 * LOGIT_LAPLACE_EPS)


class Likelihood(Protocol):
    """A distribution of pixel values, whose parameters are the decoder's output maps."""

    maps: int

    def nll(self, images: Tensor, maps: Tensor) -> Tensor: ...

    def image(self, maps: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class LogitLaplace:
    """The paper's likelihood: a Laplace distribution of the logit of the mapped pixel.

    The decoder gives its location mu and ln b for every pixel value.

    Args:
        min_log_scale: floor under ln b, approached smoothly; None (the paper's) leaves ln b free.
            On flat synthetic pictures a free scale runs away, because the density of a perfectly
            predictable pixel has no maximum.
    """

    min_log_scale: float | None = None
    maps = 6

    def nll(self, images: Tensor, maps: Tensor) -> Tensor:
        """-ln f(x; mu, b) of every pixel value, in nats; rightly negative where f exceeds one.

        Args:
            images: [B, 3, H, W] in [0, 1], before `map_pixels`.
            maps: [B, 6, H, W], the decoder's.
        """
        with torch.autocast(images.device.type, enabled=False):
            x = map_pixels(images.float())
            mu, log_scale = maps.float().chunk(2, dim=1)
            if self.min_log_scale is not None:
                log_scale = self.min_log_scale + F.softplus(log_scale - self.min_log_scale)
            residual = (torch.logit(x) - mu).abs()
            jacobian = torch.log(x * (1 - x))
            return residual * torch.exp(-log_scale) + log_scale + math.log(2) + jacobian

    def image(self, maps: Tensor) -> Tensor:
        """The picture [B, 3, H, W] in [0, 1] at the distribution's location."""
        return unmap_pixels(torch.sigmoid(maps[:, :3].float())).clamp(0, 1)


@dataclass(frozen=True)
class Gaussian:
    """Pixel values with a fixed standard deviation: squared error, in nats.

    Where few pixels of a picture say anything, the Laplace's absolute error holds every prediction
    at the median, the background, for long; the squared error moves with the mean.

    Args:
        sigma: standard deviation of a pixel value in [0, 1].
    """

    sigma: float = 0.1
    maps = 3

    def nll(self, images: Tensor, maps: Tensor) -> Tensor:
        """-ln f(x) of every pixel value [B, 3, H, W], in nats, for the decoder's 3 maps."""
        with torch.autocast(images.device.type, enabled=False):
            mean = unmap_pixels(torch.sigmoid(maps.float()))
            residual = (images.float() - mean) / self.sigma
            return residual**2 / 2 + math.log(self.sigma) + math.log(2 * math.pi) / 2

    def image(self, maps: Tensor) -> Tensor:
        """The picture [B, 3, H, W] in [0, 1] at the distribution's mean."""
        return unmap_pixels(torch.sigmoid(maps.float())).clamp(0, 1)


def categorical_kl(logits: Tensor) -> Tensor:
    """KL of the codes' plain categorical posterior from the uniform prior, at every position.

    It is taken of the logits themselves, also while the relaxation's temperature is above zero (the
    authors' own practice; the KL of the relaxed distribution has no closed form).

    Args:
        logits: [B, K, h, w].

    Returns:
        [B, h, w] in nats, between 0 and ln K.
    """
    with torch.autocast(logits.device.type, enabled=False):
        # The codebook last: that is how channels_last lies in memory, and softmax needs no copy.
        log_q = torch.log_softmax(logits.float().movedim(1, -1), dim=-1)
        return (log_q.exp() * log_q).sum(dim=-1) + math.log(logits.shape[1])
