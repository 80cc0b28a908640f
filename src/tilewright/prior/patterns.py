"""Attention patterns: one predicate per pattern, and its dense mask and KV cache slots.

FlexAttention's block mask and the CPU windows derive from the same predicate (section 2.2,
appendix B.1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from tilewright.prior.stream import BaseStream

# `predicate(query, key, side)` on image-token indices. Only called where key <= query.
# FlexAttention evaluates it for each pair; terms of one index only cost nothing extra.
ImagePredicate = Callable[[Tensor, Tensor, int], Tensor]

CONVOLUTION_KERNEL = 11


def full(query: Tensor, key: Tensor, side: int) -> Tensor:
    """Attends to all earlier tokens and itself."""
    return key <= query


def row(query: Tensor, key: Tensor, side: int) -> Tensor:
    """Attends back to the same column of the row above: side + 1 keys, itself included."""
    return key >= query - side


def column(query: Tensor, key: Tensor, side: int) -> Tensor:
    """Attends to the same column, in its own row and all rows above."""
    return key % side == query % side


def convolutional(query: Tensor, key: Tensor, side: int) -> Tensor:
    """Attends to the causal half of a centered 11x11 kernel, which wraps at row edges like `row`.

    In raster order a key lies `rows * side + columns` behind its query, with rows in 0..5 and
    columns in -5..5.
    """
    radius = CONVOLUTION_KERNEL // 2
    distance = query - key
    return (distance <= radius * side + radius) & ((distance + radius) % side <= 2 * radius)


PATTERNS: dict[str, ImagePredicate] = {
    "full": full,
    "row": row,
    "column": column,
    "convolutional": convolutional,
}


def layer_patterns(pattern: str, depth: int) -> list[str]:
    """Returns the pattern of each layer.

    Args:
        pattern: "paper" for the paper's order (row, column, row, row, repeated, and convolutional
            as the last layer), or a name in `PATTERNS` for all layers.

    Raises:
        ValueError: the pattern is unknown.
    """
    if pattern in PATTERNS:
        return [pattern] * depth
    if pattern != "paper":
        raise ValueError(f"pattern must be paper or one of {sorted(PATTERNS)}, got {pattern!r}")
    patterns = ["column" if (i - 2) % 4 == 0 else "row" for i in range(1, depth + 1)]
    if depth > 1:
        patterns[-1] = "convolutional"
    return patterns


def attention_predicate(pattern: str, stream: BaseStream) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns `predicate(query, key)` on stream positions.

    Text is causal, and an image token attends to the whole text in every pattern.
    """
    first, side, image_predicate = stream.first_image_position, stream.grid, PATTERNS[pattern]

    def predicate(query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & ((key < first) | image_predicate(query - first, key - first, side))

    return predicate


@lru_cache(maxsize=64)
def dense_mask(pattern: str, stream: BaseStream) -> Tensor:
    """Returns booleans [L, L], True where the query (row) attends to the key (column)."""
    positions = torch.arange(stream.length)
    return attention_predicate(pattern, stream)(positions[:, None], positions[None, :])


@dataclass(frozen=True)
class CacheSlots:
    """KV cache slots that each image token writes and reads.

    A key keeps its slot until its last reader has been decoded. Then a later key takes the slot.

    Args:
        count: number of slots in the cache.
        write: slot for each image token's key and value, N - 1 entries.
        read: slots that each image token reads, its own included, N - 1 entries. Evenly spaced
            slots are a slice, which reads without a copy. Others are an index tensor.
    """

    count: int
    write: list[int]
    read: list[slice | Tensor]

    @property
    def reads_per_token(self) -> list[int]:
        """Number of image keys that each image token reads."""
        all_slots = range(self.count)
        return [len(all_slots[s]) if isinstance(s, slice) else len(s) for s in self.read]

    @cached_property
    def read_table(self) -> tuple[Tensor, Tensor]:
        """`read` in equal shapes, for compiled steps: slots [N - 1, R] and their mask [N - 1, R].

        R is either `count`, with all slots in order, or the largest number of slots per token.
        """
        read = [torch.arange(self.count)[s] for s in self.read]
        longest = max(map(len, read), default=0)
        if 2 * longest > self.count:  # masking all slots costs less than gathering most of them
            mask = torch.zeros(len(read), self.count, dtype=torch.bool)
            for token, slots in enumerate(read):
                mask[token, slots] = True
            return torch.arange(self.count).expand(len(read), -1), mask
        padded = torch.zeros(len(read), longest, dtype=torch.long)
        for token, slots in enumerate(read):
            padded[token, : len(slots)] = slots
        return padded, torch.arange(longest) < torch.tensor([[len(slots)] for slots in read])


@lru_cache(maxsize=64)
def cache_slots(pattern: str, stream: BaseStream) -> CacheSlots:
    """Returns the smallest cache for a pattern.

    A row layer needs side + 1 slots and a convolutional layer about five rows. A column layer
    needs a slot per token, because the bottom row reads the top row.
    """
    first = stream.first_image_position
    visible = dense_mask(pattern, stream)[first:, first:]  # the last image token is not an input
    count = len(visible)
    readers = torch.arange(count)[:, None].expand(count, count)
    last_reader = torch.where(visible, readers, -1).amax(dim=0).tolist() if count else []
    write: list[int] = []
    free: list[int] = []
    num_slots = 0
    freed_after: dict[int, list[int]] = {}  # last reader -> slots
    for token in range(count):
        free += freed_after.pop(token - 1, [])
        if free:
            slot = free.pop(0)
        else:
            slot, num_slots = num_slots, num_slots + 1
        write.append(slot)
        freed_after.setdefault(last_reader[token], []).append(slot)
    slots = torch.tensor(write)
    read = [_as_slice(slots[visible[token]]) for token in range(count)]
    return CacheSlots(num_slots, write, read)


def _as_slice(indices: Tensor) -> slice | Tensor:
    """Returns a slice if the sorted indices are evenly spaced, else the sorted indices."""
    ordered = indices.sort().values
    start, stop = int(ordered[0]), int(ordered[-1]) + 1
    step = int(ordered[1]) - start if len(ordered) > 1 else 1
    evenly_spaced = ordered.equal(torch.arange(start, stop, step))
    return slice(start, stop, step) if evenly_spaced else ordered
