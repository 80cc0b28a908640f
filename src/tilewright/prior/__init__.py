"""Stage 2: the prior, an autoregressive transformer over text and image tokens."""

from tilewright.prior.sampler import Sampling, sample
from tilewright.prior.stream import Stream
from tilewright.prior.transformer import Transformer

__all__ = ["Sampling", "Stream", "Transformer", "sample"]
