"""Finite scalar quantization (Mentzer et al. 2023), from the package vector-quantize-pytorch."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from vector_quantize_pytorch import FSQ

from tilewright.dvae.quantizers.base import Quantizer

MAX_TOKENS = 2**22  # far above any use; the table of a larger codebook would fill the memory


class FiniteScalarQuantizer(Quantizer):
    """Quantizer that rounds each channel to a few levels; a token is one combination of levels.

    It has no codebook that could collapse and no penalty.

    Args:
        levels: number of levels of each channel; their product is the size of the codebook. The
            authors recommend [8, 6, 5] for about 2^8 tokens, [8, 5, 5, 5] for 2^10 and
            [7, 5, 5, 5, 5] for 2^12.

    Raises:
        ValueError: a channel has fewer than 3 levels, or the codebook more than `MAX_TOKENS`.
    """

    def __init__(self, levels: Sequence[int]):
        super().__init__()
        if min(levels, default=0) < 3:
            raise ValueError(f"levels={list(levels)} must be 3 or more each: raise them")
        self.num_tokens = math.prod(levels)
        if self.num_tokens > MAX_TOKENS:
            raise ValueError(
                f"levels={list(levels)} make a codebook of {self.num_tokens} tokens: keep it to "
                f"{MAX_TOKENS}"
            )
        self.channels = len(levels)
        self.rounding = FSQ(list(levels))

    def forward(self, latents: Tensor, temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(latents.device.type, enabled=False):
            return self.rounding(latents.float())[0], {}

    def tokens(self, latents: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            return self.rounding(latents.float())[1].long()

    def codes(self, tokens: Tensor) -> Tensor:
        return self.rounding.indices_to_codes(tokens)
