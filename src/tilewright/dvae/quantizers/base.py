"""Interface of quantizers, and the paper's: a relaxed categorical distribution.

`vq.py` and `fsq.py` have alternatives. The networks, the training and all users of image tokens
are the same for every quantizer.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilewright.dvae.losses import categorical_kl


class Quantizer(nn.Module, ABC):
    """Conversion of latents (encoder output) to image tokens, and of both to codes (decoder input).

    Attributes:
        num_tokens: K, the size of the codebook.
        channels: C, the number of channels of latents and codes.
        penalties: names of the penalties that `forward` returns.
    """

    num_tokens: int
    channels: int
    penalties: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, latents: Tensor, temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns codes for training, which pass gradients to the latents, and penalties.

        Args:
            latents: [B, C, h, w] in fp32.
            temperature: temperature of the relaxation; quantizers without one ignore it.

        Returns:
            Codes [B, C, h, w], and the terms that the loss adds with weight beta, by name. Each
            term is a mean over grid positions, such as the KL in nats per token.
        """

    @abstractmethod
    def tokens(self, latents: Tensor) -> Tensor:
        """Returns the image tokens [B, h, w] of latents [B, C, h, w], without noise."""

    @abstractmethod
    def codes(self, tokens: Tensor) -> Tensor:
        """Returns the codes [B, C, h, w] of image tokens [B, h, w]."""


class GumbelSoftmax(Quantizer):
    """The paper's quantizer (section 2.1): latents are logits over the codebook, so C = K.

    Codes in training are Gumbel-softmax samples; hard codes are one-hot. The penalty is the `kl` of
    the categorical posterior from the uniform prior.
    """

    penalties = ("kl",)

    def __init__(self, num_tokens: int):
        super().__init__()
        self.num_tokens = self.channels = num_tokens

    def forward(self, latents: Tensor, temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
        # channels_last memory has the codebook innermost, so that softmax needs no copy.
        logits = latents.float().movedim(1, -1)
        # Logarithms of uniform numbers, which are sampled faster than exponential ones.
        gumbel = -torch.log(-torch.log(torch.rand(logits.shape, device=logits.device)))
        with torch.autocast(latents.device.type, enabled=False):
            codes = ((logits + gumbel) / temperature).softmax(dim=-1).movedim(-1, 1)
        return codes, {"kl": categorical_kl(latents).mean()}

    def tokens(self, latents: Tensor) -> Tensor:
        return latents.argmax(dim=1)

    def codes(self, tokens: Tensor) -> Tensor:
        return F.one_hot(tokens, self.num_tokens).movedim(-1, 1).float()
