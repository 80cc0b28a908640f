"""Finite scalar quantization (Mentzer et al. 2023), by the package vector-quantize-pytorch."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from vector_quantize_pytorch import FSQ

from tilewright.dvae.quantizers.base import Quantizer


class FiniteScalarQuantizer(Quantizer):
    """Every channel is rounded to a few levels, and a token is one combination of them.

    There is no codebook to learn, none to collapse, and nothing to add to the loss.

    Args:
        levels: how many levels each channel has; their product is the size of the codebook. The
            authors' for about 2^8, 2^10, 2^12: [8, 6, 5], [8, 5, 5, 5], [7, 5, 5, 5, 5].
    """

    def __init__(self, levels: Sequence[int]):
        super().__init__()
        self.num_tokens = math.prod(levels)
        self.channels = len(levels)
        self.rounding = FSQ(list(levels))

    def forward(self, latents: Tensor, temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(latents.device.type, enabled=False):
            return self.rounding(latents.float())[0], {}

    def tokens(self, latents: Tensor) -> Tensor:
        return self.rounding(latents.float())[1].long()

    def codes(self, tokens: Tensor) -> Tensor:
        return self.rounding.indices_to_codes(tokens)
