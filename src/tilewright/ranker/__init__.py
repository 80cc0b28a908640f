"""Stage 3: the ranker, a contrastive model that says how well a picture fits a caption."""

from tilewright.ranker.networks import DualEncoder

__all__ = ["DualEncoder"]
