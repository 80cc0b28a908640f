"""Vector quantization (van den Oord et al. 2017), from the package vector-quantize-pytorch."""

import torch
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from tilewright.dvae.quantizers.base import Quantizer


class VectorQuantizer(Quantizer):
    """Vector quantizer: a token is the index of the nearest vector.

    The vectors are moving averages of latents. The penalty is the `commitment`, the squared
    distance of a latent from its vector.

    Args:
        num_tokens: K, the size of the codebook.
        channels: dimension of the vectors.
        decay: decay of the moving average per update.
        dead_threshold: average number of latents per batch below which a vector is dead and is
            replaced by a latent.
    """

    def __init__(
        self,
        num_tokens: int,
        channels: int = 16,
        decay: float = 0.99,
        dead_threshold: float = 0.1,
    ):
        super().__init__()
        self.num_tokens = num_tokens
        self.channels = channels
        self.codebook = VectorQuantize(
            dim=channels,
            codebook_size=num_tokens,
            decay=decay,
            kmeans_init=True,
            threshold_ema_dead_code=dead_threshold,
            commitment_weight=0.0,  # `forward` computes it, also in eval mode
            accept_image_fmap=True,
        )

    def forward(self, latents: Tensor, temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(latents.device.type, enabled=False):
            codes, _, _ = self.codebook(latents.float())
            commitment = (latents - codes.detach()).square().sum(dim=1).mean()
        return codes, {"commitment": commitment}

    def tokens(self, latents: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            return self.codebook(latents.float(), freeze_codebook=True)[1]

    def codes(self, tokens: Tensor) -> Tensor:
        return self.codebook.get_codes_from_indices(tokens)
