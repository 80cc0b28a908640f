"""Stage 2: the prior, an autoregressive transformer over text tokens and image tokens."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
