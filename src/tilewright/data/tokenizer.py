"""Byte-level BPE tokenizer of captions, based on Hugging Face tokenizers (section 2.2)."""

import heapq
import json
import random
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from tilewright.checks import check_number, check_whole
from tilewright.data.json_tokenizer import JsonTokenizer
from tilewright.errors import UserError


class BytePairTokenizer(JsonTokenizer):
    """Byte-level BPE over lowercased captions. Decoding restores the lowercased text in any script.

    A new tokenizer has no merges: call `train` with captions, or `load` a saved one.

    Args:
        vocab_size: maximum number of tokens. Captions with few different words give fewer.
        length: T, the number of positions. Longer captions are truncated and counted in
            `truncated`.
        dropout: share of merges that are skipped at random in training (BPE dropout; 0.1 in the
            paper). A word is then seen in several segmentations.

    Raises:
        UserError: a number is not possible.
    """

    def __init__(self, vocab_size: int = 16384, length: int = 256, dropout: float = 0.1):
        check_whole("tokenizer.vocab_size", vocab_size, 256)  # one token per byte
        check_number("tokenizer.dropout", dropout, 0, 1)
        super().__init__(vocab_size, length)
        self.dropout = dropout
        self._tokenizer = Tokenizer(models.BPE())
        self._tokenizer.normalizer = normalizers.Lowercase()
        self._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._tokenizer.decoder = decoders.ByteLevel()

    def train(self, captions: Iterable[str]) -> None:
        """Learns merges from captions."""
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        self._tokenizer.train_from_iterator(captions, trainer)
        self.__dict__.pop("_merge_table", None)

    def _use(self, tokenizer: Tokenizer, path: str | Path) -> None:
        is_bpe = isinstance(tokenizer.model, models.BPE)
        if not is_bpe or tokenizer.normalizer is None or tokenizer.pre_tokenizer is None:
            raise UserError(
                f"{path} is not a byte-level BPE of lowercased captions: give one that is"
            )
        super()._use(tokenizer, path)
        self.__dict__.pop("_merge_table", None)

    def encode(self, captions: Sequence[str], dropout: bool = False) -> Tensor:
        """Converts captions to text tokens [B, T], padded with -1.

        Args:
            dropout: skip merges at random, with torch's default generator. For training only.
        """
        if dropout and self.dropout:
            encoded = [self._encode_with_dropout(caption) for caption in captions]
        else:
            encoded = [encoding.ids for encoding in self._tokenizer.encode_batch(list(captions))]
        self.truncated += sum(len(ids) > self.length for ids in encoded)
        return self._pad(encoded)

    def split_at_length(self, caption: str) -> tuple[str, str]:
        """Returns the part of a caption that `length` tokens cover, and the rest."""
        offsets = self._tokenizer.encode(caption).offsets
        cut = offsets[self.length][0] if len(offsets) > self.length else len(caption)
        return caption[:cut], caption[cut:]

    def _encode_with_dropout(self, caption: str) -> list[int]:
        """Returns the ids of a caption, with merges skipped at random.

        The library's own dropout cannot be seeded, but a resumed training must see the same tokens.
        """
        random_number = random.Random(int(torch.randint(2**31, ()))).random
        ids: list[int] = []
        text = self._tokenizer.normalizer.normalize_str(caption)
        for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(text):
            ids += self._merge_table.merge(word, lambda: random_number() < self.dropout)
        return ids

    @cached_property
    def _merge_table(self) -> "_MergeTable":
        return _MergeTable(self._tokenizer)


class _MergeTable:
    """Merges of a tokenizer, in their order of priority."""

    def __init__(self, tokenizer: Tokenizer):
        merges = json.loads(tokenizer.to_str())["model"]["merges"]
        self._ids = tokenizer.get_vocab()
        self._ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}

    def merge(self, word: str, is_skipped: Callable[[], bool]) -> list[int]:
        """Returns the ids of a word, in about linear time, also for text without spaces.

        Each step tries the possible merges by priority and applies the first that is not skipped.

        Args:
            is_skipped: returns at random if a merge is skipped in this step.
        """
        parts = list(word)  # a merge moves its text to the left part and empties the right one
        following = list(range(1, len(parts) + 1))
        previous = list(range(-1, len(parts) - 1))
        merges: list[tuple[int, int, tuple[str, str]]] = []  # heap of (rank, index, pair)

        def add(index: int) -> None:
            if index >= 0 and following[index] < len(parts):
                pair = parts[index], parts[following[index]]
                if pair in self._ranks:
                    heapq.heappush(merges, (self._ranks[pair], index, pair))

        for index in range(len(parts)):
            add(index)
        skipped = []
        while merges:
            merge = _, left, pair = heapq.heappop(merges)
            right = following[left]
            if right == len(parts) or (parts[left], parts[right]) != pair:
                continue  # another merge has changed one of the parts
            if is_skipped():
                skipped.append(merge)
                continue
            parts[left], parts[right] = "".join(pair), ""
            following[left] = after = following[right]
            if after < len(parts):
                previous[after] = left
            add(previous[left])
            add(left)
            while skipped:
                heapq.heappush(merges, skipped.pop())
        return [self._ids[part] for part in parts if part]
