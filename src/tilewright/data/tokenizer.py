"""Captions to text tokens and back: byte-level BPE, on Hugging Face tokenizers (section 2.2)."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from tilewright.errors import UserError


class BytePairTokenizer:
    """Byte-level BPE over lowercased captions; any caption in any script comes back as it was.

    A new one knows no merges yet: `train` it on captions or `load` one that was saved.

    Args:
        vocab_size: most tokens that training makes; captions of few different words need fewer.
        length: T, positions of a caption; longer ones are cut and counted in `truncated`.
        dropout: share of merges skipped at random in training, so that a word is seen in several
            spellings (BPE dropout, the paper's 10 %).
    """

    def __init__(self, vocab_size: int = 16384, length: int = 256, dropout: float = 0.1):
        if vocab_size < 256:
            raise ValueError(f"vocab_size must hold the 256 bytes at least, got {vocab_size}")
        self.vocab_size = vocab_size
        self.length = length
        self.dropout = dropout
        self.truncated = 0
        self._tokenizer = Tokenizer(models.BPE())
        self._tokenizer.normalizer = normalizers.Lowercase()
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._tokenizer.decoder = decoders.ByteLevel()

    def train(self, captions: Iterable[str]) -> None:
        """Learns the merges from captions."""
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        self._tokenizer.train_from_iterator(captions, trainer)

    def save(self, path: str | Path) -> None:
        """Writes `tokenizer.json`, which Hugging Face tools open as it is."""
        self._tokenizer.model.dropout = None  # it is for training, and others would apply it
        self._tokenizer.save(str(path))

    def load(self, path: str | Path) -> None:
        """Reads a saved `tokenizer.json`.

        Raises:
            UserError: there is none, it is no tokenizer, or it has more tokens than `vocab_size`.
        """
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"no tokenizer can be read from {path}: {error}") from error
        if tokenizer.get_vocab_size() > self.vocab_size:
            raise UserError(
                f"{path} has {tokenizer.get_vocab_size()} tokens, more than "
                f"tokenizer.vocab_size={self.vocab_size}"
            )
        self._tokenizer = tokenizer

    def encode(self, captions: Sequence[str], dropout: bool = False) -> Tensor:
        """Captions to text tokens [B, T], -1 past their end.

        Args:
            dropout: skip merges at random; for training only.
        """
        self._tokenizer.model.dropout = self.dropout if dropout and self.dropout else None
        tokens = torch.full((len(captions), self.length), -1)
        for row, encoding in zip(tokens, self._tokenizer.encode_batch(list(captions)), strict=True):
            ids = encoding.ids
            self.truncated += len(ids) > self.length
            row[: len(ids)] = torch.tensor(ids[: self.length], dtype=torch.long)
        return tokens

    def decode(self, tokens: Tensor) -> list[str]:
        """Text tokens [B, T] to captions; whatever is no BPE token is left out."""
        size = self._tokenizer.get_vocab_size()
        return [
            self._tokenizer.decode([token for token in row if 0 <= token < size])
            for row in tokens.tolist()
        ]
