"""Vector quantization (van den Oord et al. 2017), by the package vector-quantize-pytorch."""

import torch
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from tilewright.dvae.quantizers.base import Quantizer


class VectorQuantizer(Quantizer):
    """The token of a latent is the nearest of `num_tokens` vectors, which follow the latents.

    Its penalty is the `commitment`: the squared distance of a latent from its vector.

    Args:
        num_tokens: K, the size of the codebook.
        channels: width of the vectors.
        decay: share of a vector kept at each update of the codebook's moving average.
        dead: a vector with fewer latents than this, on average per batch, is replaced by a latent.
    """

    def __init__(self, num_tokens: int, channels: int = 16, decay: float = 0.99, dead: float = 0.1):
        super().__init__()
        self.num_tokens = num_tokens
        self.channels = channels
        self.codebook = VectorQuantize(
            dim=channels,
            codebook_size=num_tokens,
            decay=decay,
            kmeans_init=True,
            threshold_ema_dead_code=dead,
            commitment_weight=0.0,  # measured below, in validation too
            accept_image_fmap=True,
        )

    def forward(self, latents: Tensor, temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(latents.device.type, enabled=False):
            codes, _, _ = self.codebook(latents.float())
            commitment = (latents - codes.detach()).square().sum(dim=1).mean()
        return codes, {"commitment": commitment}

    def tokens(self, latents: Tensor) -> Tensor:
        return self.codebook(latents.float(), freeze_codebook=True)[1]

    def codes(self, tokens: Tensor) -> Tensor:
        return self.codebook.get_codes_from_indices(tokens)
