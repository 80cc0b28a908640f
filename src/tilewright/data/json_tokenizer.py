"""Base class of text tokenizers that are a `tokenizer.json` of Hugging Face tokenizers."""

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from torch import Tensor

from tilewright.checks import check_whole
from tilewright.errors import UserError, first_line
from tilewright.files import write_atomically


class JsonTokenizer:
    """Text tokenizer that is saved as a `tokenizer.json`, which Hugging Face tools can open.

    Args:
        vocab_size: maximum number of tokens.
        length: T, the number of positions.
    """

    _tokenizer: Tokenizer

    def __init__(self, vocab_size: int, length: int):
        check_whole("tokenizer.length", length)
        self.vocab_size = vocab_size
        self.length = length
        self.truncated = 0

    def save(self, path: str | Path) -> None:
        """Writes a `tokenizer.json` that Hugging Face tools can open."""
        write_atomically(Path(path), self._tokenizer.to_str(pretty=True))

    def load(self, path: str | Path) -> None:
        """Loads a saved `tokenizer.json`.

        Raises:
            UserError: the file cannot be read, or it has more than `vocab_size` tokens.
        """
        self._use(read_tokenizer(path), path)

    def _use(self, tokenizer: Tokenizer, path: str | Path) -> None:
        """Takes a tokenizer that was read from a path.

        Raises:
            UserError: it has more than `vocab_size` tokens.
        """
        tokens = count_tokens(tokenizer)
        if tokens > self.vocab_size:
            raise UserError(
                f"{path} has {tokens} tokens, more than tokenizer.vocab_size={self.vocab_size}: "
                f"set tokenizer.vocab_size={tokens}"
            )
        self._tokenizer = tokenizer

    def decode(self, tokens: Tensor) -> list[str]:
        """Converts text tokens [B, T] to captions. Values that are not tokens are ignored."""
        return [
            self._tokenizer.decode([token for token in row if token >= 0])
            for row in tokens.tolist()
        ]

    def _pad(self, encoded: Iterable[list[int]]) -> Tensor:
        """Returns text tokens [B, T] of captions' ids, padded with -1."""
        padding = [-1] * self.length
        rows = [(ids + padding)[: self.length] for ids in encoded]
        return torch.tensor(rows, dtype=torch.long).view(-1, self.length)


def read_tokenizer(path: str | Path) -> Tokenizer:
    """Reads a `tokenizer.json`, without its options for padding, truncation and dropout.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(
            f"{path} cannot be read as a tokenizer ({first_line(error)}): give a tokenizer.json"
        ) from error
    return without_options(tokenizer)


def without_options(tokenizer: Tokenizer) -> Tokenizer:
    """Switches off a tokenizer's padding, truncation and dropout, in place, and returns it."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if isinstance(tokenizer.model, models.BPE):
        tokenizer.model.dropout = None
    return tokenizer


def count_tokens(tokenizer: Tokenizer) -> int:
    """Returns the number of token ids, which may have gaps."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)
