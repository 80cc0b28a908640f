"""Stage 2: the prior, an autoregressive transformer over text and image tokens."""

from tilewright.prior.lightening import Weights, lightened
from tilewright.prior.likelihood import complete, log_likelihood
from tilewright.prior.sampler import Sampling, sample, sample_rows
from tilewright.prior.stream import Stream
from tilewright.prior.transformer import Transformer

__all__ = [
    "Sampling",
    "Stream",
    "Transformer",
    "Weights",
    "complete",
    "lightened",
    "log_likelihood",
    "sample",
    "sample_rows",
]
