"""Quantizers between the encoder and the decoder of a dVAE."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
