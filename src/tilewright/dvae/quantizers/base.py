"""What stands between the encoder and the decoder and makes tokens of the encoder's output.

The paper's is a relaxed categorical. `vq.py` and `fsq.py` hold others; the networks around them,
the training and everything that uses image tokens are the same for all.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilewright.dvae.losses import categorical_kl


class Quantizer(nn.Module, ABC):
    """Latents (the encoder's output) to image tokens, and both to codes (the decoder's input).

    Attributes:
        num_tokens: K, the size of the codebook.
        channels: C, of latents and of codes.
    """

    num_tokens: int
    channels: int

    @abstractmethod
    def forward(self, latents: Tensor, temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Codes for training, through which the encoder gets its gradient.

        Args:
            latents: [B, C, h, w] in fp32.
            temperature: of a relaxation; a quantizer that has none does not look at it.

        Returns:
            Codes [B, C, h, w], and by name what the loss is to add, weighted by beta: means over
            the positions of the grid, such as the KL in nats per token.
        """

    @abstractmethod
    def tokens(self, latents: Tensor) -> Tensor:
        """The image tokens [B, h, w] of latents [B, C, h, w], without noise."""

    @abstractmethod
    def codes(self, tokens: Tensor) -> Tensor:
        """The codes [B, C, h, w] of image tokens [B, h, w]."""


class GumbelSoftmax(Quantizer):
    """The paper's: latents are logits over the codebook, codes a Gumbel-softmax sample of them.

    Section 2.1; its penalty is the `kl` of the categorical posterior from the uniform prior.
    """

    def __init__(self, num_tokens: int):
        super().__init__()
        self.num_tokens = self.channels = num_tokens

    def forward(self, latents: Tensor, temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
        # The codebook last: that is how channels_last lies in memory, and softmax needs no copy.
        logits = latents.float().movedim(1, -1)
        # By logarithms of uniform numbers, which are drawn faster than exponential ones.
        gumbel = -torch.log(-torch.log(torch.rand(logits.shape, device=logits.device)))
        with torch.autocast(latents.device.type, enabled=False):
            codes = ((logits + gumbel) / temperature).softmax(dim=-1).movedim(-1, 1)
        return codes, {"kl": categorical_kl(latents).mean()}

    def tokens(self, latents: Tensor) -> Tensor:
        return latents.argmax(dim=1)

    def codes(self, tokens: Tensor) -> Tensor:
        return F.one_hot(tokens, self.num_tokens).movedim(-1, 1).float()
