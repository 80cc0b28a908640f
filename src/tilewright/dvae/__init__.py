"""Stage 1: the discrete VAE."""

from tilewright.dvae.networks import DiscreteVAE

__all__ = ["DiscreteVAE"]
