"""Protocol of text tokenizers, which convert captions to the text of a prior's stream."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor


class TextTokenizer(Protocol):
    """Converter of captions to text tokens, or to the features of a frozen text encoder.

    A run holds what `save` writes, so that it does not depend on other files.

    Attributes:
        length: T, the number of text positions.
        vocab_size: maximum number of tokens.
        truncated: number of captions so far that were longer than `length` and were truncated.
    """

    length: int
    vocab_size: int
    truncated: int

    def train(self, captions: Iterable[str]) -> None:
        """Prepares a new tokenizer for a run, from the training captions if it learns from them."""
        ...

    def save(self, path: str | Path) -> None:
        """Writes the file from which `load` restores the tokenizer."""
        ...

    def load(self, path: str | Path) -> None:
        """Restores a saved tokenizer."""
        ...

    def encode(self, captions: Sequence[str], dropout: bool = False) -> Tensor:
        """Converts captions to text tokens [B, T], padded with -1, or to features [B, T, D + 1].

        The last channel of features is 1 for a token of the caption and 0 for padding.

        Args:
            dropout: vary the segmentation at random if the tokenizer can. For training only.
        """
        ...

    def split_at_length(self, caption: str) -> tuple[str, str]:
        """Returns the part of a caption that `length` tokens cover, and the rest."""
        ...

    def decode(self, tokens: Tensor) -> list[str]:
        """Converts text tokens [B, T] to captions. Values that are not tokens are ignored."""
        ...
