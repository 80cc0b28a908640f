"""Train and run DALL-E (arXiv 2102.12092): a discrete VAE, a prior, a ranker, and evaluation."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
