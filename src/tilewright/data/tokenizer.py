"""Captions to text tokens and back: byte-level BPE, on Hugging Face tokenizers (section 2.2)."""

import json
import random
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from tilewright.errors import UserError

REMEMBERED = 2**16  # parts of words, in training with dropout


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
        self.__dict__.pop("_spelling", None)

    def save(self, path: str | Path) -> None:
        """Writes `tokenizer.json`, which Hugging Face tools open as it is."""
        self._tokenizer.save(str(path))

    def load(self, path: str | Path) -> None:
        """Reads a saved `tokenizer.json`.

        Raises:
            UserError: there is none, it is no byte-level BPE, or it has tokens that are none of
                `vocab_size`.
        """
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"no tokenizer can be read from {path}: {error}") from error
        is_bpe = isinstance(tokenizer.model, models.BPE)
        if not is_bpe or tokenizer.normalizer is None or tokenizer.pre_tokenizer is None:
            raise UserError(f"{path} is no byte-level BPE of lowercased captions, which is needed")
        tokens = 1 + max(tokenizer.get_vocab().values(), default=-1)  # numbers may leave gaps
        if tokens > self.vocab_size:
            raise UserError(
                f"{path} has {tokens} tokens, more than tokenizer.vocab_size={self.vocab_size}"
            )
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.model.dropout = None  # one that others have saved with it
        self._tokenizer = tokenizer
        self.__dict__.pop("_spelling", None)

    def encode(self, captions: Sequence[str], dropout: bool = False) -> Tensor:
        """Captions to text tokens [B, T], -1 past their end.

        Args:
            dropout: skip merges at random, by torch's default generator; for training only.
        """
        if dropout and self.dropout:
            found = [self._spell(caption) for caption in captions]
        else:
            found = [encoding.ids for encoding in self._tokenizer.encode_batch(list(captions))]
        self.truncated += sum(len(ids) > self.length for ids in found)
        padding = [-1] * self.length
        return torch.tensor([(ids + padding)[: self.length] for ids in found])

    def decode(self, tokens: Tensor) -> list[str]:
        """Text tokens [B, T] to captions; whatever is no BPE token is left out."""
        size = self._tokenizer.get_vocab_size()
        return [
            self._tokenizer.decode([token for token in row if 0 <= token < size])
            for row in tokens.tolist()
        ]

    def _spell(self, caption: str) -> list[int]:
        """A caption's tokens where each merge is skipped at random.

        The library's own dropout takes random numbers that nobody can seed, and a training that
        resumes has to see what it would have seen.
        """
        draw = random.Random(int(torch.randint(2**31, ()))).random
        dropout, spelling = self.dropout, self._spelling
        ids: list[int] = []
        text = self._tokenizer.normalizer.normalize_str(caption)
        for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(text):
            parts = tuple(word)
            while kept := [merge for merge in spelling.merges(parts) if draw() >= dropout]:
                _, _, parts = min(kept)
            ids += [spelling.ids[part] for part in parts]
        return ids

    @cached_property
    def _spelling(self) -> "_Spelling":
        return _Spelling(self._tokenizer)


Parts = tuple[str, ...]


class _Spelling:
    """What a word's parts can be merged to, remembered, for the same words come again and again."""

    def __init__(self, tokenizer: Tokenizer):
        merges = json.loads(tokenizer.to_str())["model"]["merges"]
        self.ids = tokenizer.get_vocab()
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
        self._known: dict[Parts, list[tuple[int, int, Parts]]] = {}

    def merges(self, parts: Parts) -> list[tuple[int, int, Parts]]:
        """Each possible merge from left to right: its rank, its place, the parts after it."""
        found = self._known.get(parts)
        if found is None:
            found = [
                (self._ranks[pair], i, (*parts[:i], "".join(pair), *parts[i + 2 :]))
                for i, pair in enumerate(pairwise(parts))
                if pair in self._ranks
            ]
            if len(self._known) < REMEMBERED:
                self._known[parts] = found
        return found
