"""The two terms of the dVAE's evidence lower bound (section 2.1, appendices A.2 and A.3).

All of it is computed in fp32: under bf16 the logit of a pixel near black or white loses its digits.
"""

import math

import torch
from torch import Tensor

# The paper's epsilon: pixels are moved into [0.1, 0.9], where the logit-Laplace is well behaved.
LOGIT_LAPLACE_EPS = 0.1


def map_pixels(images: Tensor) -> Tensor:
    """Pixels in [0, 1] to [eps, 1 - eps], the logit-Laplace's home."""
    return (1 - 2 * LOGIT_LAPLACE_EPS) * images + LOGIT_LAPLACE_EPS


def unmap_pixels(images: Tensor) -> Tensor:
    """The inverse of `map_pixels`, clamped to [0, 1]."""
    return ((images - LOGIT_LAPLACE_EPS) / (1 - 2 * LOGIT_LAPLACE_EPS)).clamp(0, 1)


def logit_laplace_nll(images: Tensor, mu: Tensor, log_scale: Tensor) -> Tensor:
    """-ln f(x; mu, b) for every pixel, with f the logit-Laplace density of the mapped pixel.

    Args:
        images: [B, 3, H, W] in [0, 1], before `map_pixels`.
        mu, log_scale: [B, 3, H, W], the decoder's two halves.

    Returns:
        [B, 3, H, W] in nats. A density may exceed one, so this can rightly be negative.
    """
    with torch.autocast(images.device.type, enabled=False):
        x = map_pixels(images.float())
        residual = torch.logit(x) - mu.float()
        log_scale = log_scale.float()
        return (
            residual.abs() * torch.exp(-log_scale)
            + log_scale
            + math.log(2)
            + torch.log(x * (1 - x))
        )


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
        log_q = torch.log_softmax(logits.float(), dim=1)
        return (log_q.exp() * log_q).sum(dim=1) + math.log(logits.shape[1])
