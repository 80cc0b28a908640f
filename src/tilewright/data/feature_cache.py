"""Cache of caption features on disk: each distinct caption of a split is encoded once.

The folder `index` lists the distinct captions as text tokens, sorted by a hash. The features lie in
shards of `SHARD` captions, without padding, and are memory-mapped.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tilewright.data.caption_encoder import BATCH_SIZE, CaptionEncoder
from tilewright.data.pretrained_tokenizer import PretrainedTokenizer
from tilewright.data.shards import (
    Advance,
    encode_shards,
    lock_file,
    map_shard,
    shard_file,
    write_errors,
)
from tilewright.errors import UserError
from tilewright.files import atomic_file, atomic_folder

SHARD = 1024  # captions of a file
KIND = "caption features"  # in messages


class FeatureCache:
    """Hidden states [n, D] of a split's captions by their text tokens, from a folder of shards."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._index = CaptionIndex(folder / "index")

    def __len__(self) -> int:
        """Returns the number of distinct captions."""
        return len(self._index.keys)

    def __getitem__(self, tokens: Tensor) -> Tensor:
        """Returns the hidden states [n, D] of a caption of n text tokens, padded to [T]."""
        entry = self._index.find(tokens)
        shard, offsets = entry // SHARD, self._index.offsets
        first = offsets[shard * SHARD]
        states = self._open(shard)[offsets[entry] - first : offsets[entry + 1] - first]
        copied = torch.from_numpy(states.copy())
        return copied.view(torch.bfloat16) if states.dtype == np.int16 else copied

    def __reduce__(self) -> Any:  # another process maps the files itself
        return FeatureCache, (self.folder,)

    def num_bytes(self) -> int:
        """Returns the size of the shards."""
        return sum(file.stat().st_size for file in self.folder.glob("*.npy"))

    def _open(self, shard: int) -> np.ndarray:
        path = shard_file(self.folder, shard)
        states = map_shard(path)
        if len(states) != self._index.count_tokens(shard):
            raise UserError(f"{path} belongs to other captions: delete it to encode it again")
        return states


class CaptionIndex:
    """Distinct captions of a split as text tokens, sorted by a hash. Memory-mapped.

    Attributes:
        keys: hash of each caption, 16 bytes.
        offsets: index of each caption's first token, and at the end the number of all tokens.
        tokens: text tokens of all captions, one after the other.
    """

    def __init__(self, folder: Path):
        try:
            self.keys, self.offsets, self.tokens = (
                np.load(folder / f"{name}.npy", mmap_mode="r")
                for name in ("keys", "offsets", "tokens")
            )
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{folder} cannot be read: delete it to write it again") from error
        self._folder = folder

    def find(self, tokens: Tensor) -> int:
        """Returns the index of a caption's entry.

        Raises:
            UserError: the index lacks the caption.
        """
        key = _key(tokens[tokens >= 0].numpy().astype(np.int32))
        entry = int(np.searchsorted(self.keys, key))
        if entry == len(self.keys) or self.keys[entry] != key:
            raise UserError(
                f"{self._folder} lacks a caption of the data: delete {self._folder.parent} to "
                "encode the captions again"
            )
        return entry

    def count_tokens(self, shard: int) -> int:
        """Returns the number of tokens of a shard's captions."""
        last = min((shard + 1) * SHARD, len(self.keys))
        return int(self.offsets[last] - self.offsets[shard * SHARD])

    def padded(self, entries: np.ndarray, length: int) -> Tensor:
        """Returns the text tokens [B, T] of entries, padded with -1."""
        rows = torch.full((len(entries), length), -1, dtype=torch.long)
        for row, entry in zip(rows, entries, strict=True):
            tokens = self.tokens[self.offsets[entry] : self.offsets[entry + 1]]
            row[: len(tokens)] = torch.from_numpy(tokens.astype(np.int64))
        return rows


def encode_captions(
    captions: Iterable[Sequence[str]], encoder: CaptionEncoder, folder: Path, label: str | None
) -> FeatureCache:
    """Encodes the distinct captions of a split, or opens their features if they are on disk.

    Several processes can encode at the same time. An interrupted encoding keeps complete shards.

    Args:
        captions: batches of captions. They are read only if the folder has no index.
        folder: folder of the features. Its name must depend on all that determines them.
        label: name of the captions in the progress bar. None shows no bar.

    Raises:
        UserError: the folder cannot be written, or the encoder cannot be loaded.
    """
    index_folder = folder / "index"
    with write_errors(folder, KIND):
        folder.mkdir(parents=True, exist_ok=True)
        with lock_file(index_folder, wait=True) as locked:
            if locked:
                _write_index(captions, encoder.tokenizer, index_folder)
    index = CaptionIndex(index_folder)

    def encode(file: Path, entries: range, advance: Advance) -> None:
        _encode_shard(index, encoder, file, entries, advance)

    encode_shards(folder, len(index.keys), SHARD, encode, KIND, label)
    return FeatureCache(folder)


def _write_index(
    captions: Iterable[Sequence[str]], tokenizer: PretrainedTokenizer, folder: Path
) -> None:
    """Writes the index of the distinct captions."""
    all_keys: list[np.ndarray] = [np.empty(0, "S16")]
    all_counts: list[np.ndarray] = [np.empty(0, np.int64)]
    all_tokens: list[np.ndarray] = [np.empty(0, np.int32)]
    truncated = tokenizer.truncated
    for batch in captions:
        rows = tokenizer.encode(batch).numpy().astype(np.int32)
        is_token = rows >= 0
        all_keys.append(
            np.array([_key(row[tokens]) for row, tokens in zip(rows, is_token, strict=True)], "S16")
        )
        all_counts.append(is_token.sum(axis=1))
        all_tokens.append(rows[is_token])
    tokenizer.truncated = truncated  # counted when the captions are used
    counts, tokens = np.concatenate(all_counts), np.concatenate(all_tokens)
    keys, first = np.unique(np.concatenate(all_keys), return_index=True)
    starts = np.cumsum(counts) - counts
    counts, starts = counts[first], starts[first]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    source = np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1])
    with atomic_folder(folder) as temporary:
        np.save(temporary / "keys.npy", keys)
        np.save(temporary / "offsets.npy", offsets)
        np.save(temporary / "tokens.npy", tokens[source])


def _encode_shard(
    index: CaptionIndex, encoder: CaptionEncoder, file: Path, entries: range, advance: Advance
) -> None:
    """Encodes the captions of a shard and writes its file."""
    offsets = index.offsets[entries.start : entries.stop + 1] - index.offsets[entries.start]
    # Captions of equal length need no padding in a pass through the encoder.
    by_length = np.argsort(np.diff(offsets), kind="stable")
    parts: list[Tensor] = [torch.empty(0)] * len(entries)
    for begin in range(0, len(entries), BATCH_SIZE):
        batch = by_length[begin : begin + BATCH_SIZE]
        tokens = index.padded(batch + entries.start, encoder.length)
        states = encoder.hidden_states(tokens).cpu()
        for entry, row, count in zip(batch, states, (tokens >= 0).sum(dim=1), strict=True):
            parts[entry] = row[:count]
        advance(len(batch))
    joined = torch.cat(parts)
    is_bfloat16 = joined.dtype == torch.bfloat16  # NumPy has none
    array = (joined.view(torch.int16) if is_bfloat16 else joined).numpy()
    with atomic_file(file) as temporary, temporary.open("wb") as opened:
        np.save(opened, array)


def _key(tokens: np.ndarray) -> bytes:
    # Without zeros at the end, which NumPy drops from the keys of the index.
    return hashlib.blake2b(tokens.tobytes(), digest_size=16).digest().rstrip(b"\0")
