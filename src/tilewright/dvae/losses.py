"""Terms of the dVAE's evidence lower bound: pixel likelihoods and the KL (section 2.1, A.2, A.3).

All terms are computed in fp32, because in bf16 the logit of a pixel near black or white loses its
digits.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from tilewright.checks import check_number, check_option

# The paper's epsilon: pixels are mapped to [0.1, 0.9], where their logits are bounded.
LOGIT_LAPLACE_EPS = 0.1

Maps = Literal["logits", "unit", "signed"]


def map_pixels(images: Tensor) -> Tensor:
    """Maps pixels from [0, 1] to [eps, 1 - eps], the range of the logit-Laplace."""
    return (1 - 2 * LOGIT_LAPLACE_EPS) * images + LOGIT_LAPLACE_EPS


def unmap_pixels(images: Tensor) -> Tensor:
    """Inverts `map_pixels`; values outside [eps, 1 - eps] give pixels outside [0, 1]."""
    return (images - LOGIT_LAPLACE_EPS) / (1 - 2 * LOGIT_LAPLACE_EPS)


def maps_to_pixels(maps: Tensor, kind: Maps) -> Tensor:
    """Returns the pixel values that a decoder's maps stand for, which may be outside [0, 1].

    Args:
        maps: [B, 3, H, W].
        kind: "logits" of mapped pixel values, or pixel values in [0, 1] ("unit") or in [-1, 1]
            ("signed").
    """
    maps = maps.float()
    if kind == "logits":
        return unmap_pixels(torch.sigmoid(maps))
    return (maps + 1) / 2 if kind == "signed" else maps


class Likelihood(Protocol):
    """Distribution of pixel values, whose parameters are the decoder's output maps.

    Attributes:
        num_maps: number of output maps.
    """

    num_maps: int

    def nll(self, images: Tensor, maps: Tensor) -> Tensor:
        """Returns the negative log-likelihood [B, 3, H, W] of images [B, 3, H, W], in nats."""
        ...

    def image(self, maps: Tensor) -> Tensor:
        """Returns the most likely images [B, 3, H, W] for maps [B, num_maps, H, W]."""
        ...


@dataclass(frozen=True)
class LogitLaplace:
    """The paper's likelihood: a Laplace distribution of the logit of the mapped pixel.

    The decoder predicts the location mu and the log scale ln b of every pixel value.

    Args:
        min_log_scale: lower bound of ln b, applied smoothly. None, as in the paper, leaves ln b
            unbounded. Flat synthetic images then make it diverge, because the density of a pixel
            that is predicted perfectly has no maximum.
    """

    min_log_scale: float | None = None
    num_maps = 6

    def nll(self, images: Tensor, maps: Tensor) -> Tensor:
        """Returns -ln f(x; mu, b) of every pixel value, in nats.

        It is negative where the density exceeds one.

        Args:
            images: [B, 3, H, W] in [0, 1], before `map_pixels`.
            maps: [B, 6, H, W], mu and ln b of each channel.
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
        """Returns the images [B, 3, H, W] in [0, 1] at the location of the distribution."""
        return unmap_pixels(torch.sigmoid(maps[:, :3].float())).clamp(0, 1)


@dataclass(frozen=True)
class Gaussian:
    """Pixel values with a fixed standard deviation, which gives a squared error in nats.

    It learns flat images faster than the Laplace distribution, whose absolute error keeps
    predictions at the median, the background (docs/dvae.md).

    Args:
        sigma: standard deviation of a pixel value in [0, 1].
        maps: kind of the decoder's maps, see `maps_to_pixels`.
    """

    sigma: float = 0.1
    maps: Maps = "logits"
    num_maps = 3

    def __post_init__(self) -> None:
        check_number("likelihood.sigma", self.sigma, 0, exclusive=True)
        check_option("likelihood.maps", self.maps, get_args(Maps))

    def nll(self, images: Tensor, maps: Tensor) -> Tensor:
        """Returns -ln f(x) of every pixel value, in nats.

        Args:
            images: [B, 3, H, W] in [0, 1].
            maps: [B, 3, H, W], means.
        """
        with torch.autocast(images.device.type, enabled=False):
            residual = (images.float() - maps_to_pixels(maps, self.maps)) / self.sigma
            return residual**2 / 2 + math.log(self.sigma) + math.log(2 * math.pi) / 2

    def image(self, maps: Tensor) -> Tensor:
        """Returns the images [B, 3, H, W] in [0, 1] at the mean of the distribution."""
        return maps_to_pixels(maps, self.maps).clamp(0, 1)


@dataclass(frozen=True)
class Laplace:
    """Pixel values with a fixed scale, which gives an absolute error in nats, as in VQGAN.

    Args:
        scale: expected absolute error of a pixel value in [0, 1].
        maps: kind of the decoder's maps, see `maps_to_pixels`. Published VQGANs return pixel
            values.
    """

    scale: float = 0.1
    maps: Maps = "unit"
    num_maps = 3

    def __post_init__(self) -> None:
        check_number("likelihood.scale", self.scale, 0, exclusive=True)
        check_option("likelihood.maps", self.maps, get_args(Maps))

    def nll(self, images: Tensor, maps: Tensor) -> Tensor:
        """Returns -ln f(x) of every pixel value, in nats.

        Args:
            images: [B, 3, H, W] in [0, 1].
            maps: [B, 3, H, W], medians.
        """
        with torch.autocast(images.device.type, enabled=False):
            residual = (images.float() - maps_to_pixels(maps, self.maps)).abs()
            return residual / self.scale + math.log(2 * self.scale)

    def image(self, maps: Tensor) -> Tensor:
        """Returns the images [B, 3, H, W] in [0, 1] at the median of the distribution."""
        return maps_to_pixels(maps, self.maps).clamp(0, 1)


def categorical_kl(logits: Tensor) -> Tensor:
    """Returns the KL of the categorical posterior from the uniform prior at every grid position.

    It is the KL of the logits, not of the relaxed distribution, which has no closed form. The
    paper's authors do the same.

    Args:
        logits: [B, K, h, w].

    Returns:
        [B, h, w] in nats, between 0 and ln K.
    """
    with torch.autocast(logits.device.type, enabled=False):
        # channels_last memory has the codebook innermost, so that softmax needs no copy.
        log_q = torch.log_softmax(logits.float().movedim(1, -1), dim=-1)
        return (log_q.exp() * log_q).sum(dim=-1) + math.log(logits.shape[1])
