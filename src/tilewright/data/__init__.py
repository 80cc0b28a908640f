"""Where captioned pictures come from, and how they become batches."""

from tilewright.data.datamodule import CaptionedImages
from tilewright.data.tokenizer import BytePairTokenizer

__all__ = ["BytePairTokenizer", "CaptionedImages"]
