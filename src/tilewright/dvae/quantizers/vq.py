"""Vector quantization (van den Oord et al. 2017), from the package vector-quantize-pytorch."""

import torch
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from tilewright.checks import check_number, check_whole
from tilewright.distributed.collectives import (
    copy_from_first,
    gather_sizes,
    process_rank,
    sum_over_processes,
)
from tilewright.dvae.quantizers.base import Quantizer


class VectorQuantizer(Quantizer):
    """Vector quantizer: a token is the index of the nearest vector.

    The vectors are moving averages of the latents of all processes. Before the first training
    batch, from which they start, they are zero. The penalty is the `commitment`, the squared
    distance of a latent from its vector.

    Args:
        num_tokens: K, the size of the codebook.
        channels: dimension of the vectors.
        decay: decay of the moving average per batch.
        dead_threshold: average number of latents per batch below which a vector is dead and is
            replaced by a latent.

    Raises:
        UserError: a number is not possible.
    """

    penalties = ("commitment",)

    def __init__(
        self,
        num_tokens: int,
        channels: int = 16,
        decay: float = 0.99,
        dead_threshold: float = 0.1,
    ):
        super().__init__()
        check_whole("model.network.quantizer.channels", channels)
        check_number("model.network.quantizer.decay", decay, 0, 1)
        check_number("model.network.quantizer.dead_threshold", dead_threshold, 0)
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
        # The library chooses these functions at construction, before processes are connected.
        vectors = self.codebook._codebook
        vectors.sample_fn = vectors.replace_sample_fn = sample_latents
        vectors.kmeans_all_reduce_fn = vectors.all_reduce_fn = sum_over_processes

    def forward(self, latents: Tensor, temperature: float) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(latents.device.type, enabled=False):
            if self.training:
                codes, _, _ = self.codebook(latents.float())
            else:  # in evaluation, the library would also initialize its vectors from a batch
                codes = self.codes(self.tokens(latents))
            commitment = (latents - codes.detach()).square().sum(dim=1).mean()
        return codes, {"commitment": commitment}

    def tokens(self, latents: Tensor) -> Tensor:
        with torch.autocast(latents.device.type, enabled=False):
            vectors = latents.float().movedim(1, -1)
            distances = torch.cdist(vectors.flatten(0, -2), self.codebook.codebook)
        return distances.argmin(dim=1).view(vectors.shape[:-1])

    def codes(self, tokens: Tensor) -> Tensor:
        return self.codebook.get_codes_from_indices(tokens)


def sample_latents(latents: Tensor, count: int) -> Tensor:
    """Returns random latents [1, count, C] of all processes, the same in each process.

    The latents are distinct if there are enough of them, as in a training on one process.

    Args:
        latents: latents [1, N, C] of this process.
    """
    sizes = gather_sizes(latents.shape[1], latents.device).tolist()
    total, first = sum(sizes), sum(sizes[: process_rank()])
    if total >= count:
        indices = torch.randperm(total, device=latents.device)[:count]
    else:
        indices = torch.randint(total, (count,), device=latents.device)
    own = copy_from_first(indices) - first
    is_own = (own >= 0) & (own < latents.shape[1])
    sampled = latents.new_zeros(1, count, latents.shape[2])
    sampled[:, is_own] = latents[:, own[is_own]]
    return sum_over_processes(sampled)
