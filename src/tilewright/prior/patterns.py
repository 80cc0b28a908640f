"""Who may see whom: one predicate per attention pattern, and everything that is derived from it.

A predicate takes query and key positions of the stream (integers or integer tensors) and says
whether the query sees the key. The dense mask, FlexAttention's block mask and the plan by which a
cached decoding step stores and reads keys all come from it (section 2.2, appendix B.1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from tilewright.prior.stream import Stream

# Of image tokens' indices (query, key) and the grid's side; asked of keys at or before the query.
# FlexAttention asks it for each pair of a block: what is of one of the two alone costs it nothing.
Predicate = Callable[[Tensor, Tensor, int], Tensor]

CONVOLUTION_KERNEL = 11


def full(query: Tensor, key: Tensor, side: int) -> Tensor:
    """Every token before, and itself."""
    return key <= query


def row(query: Tensor, key: Tensor, side: int) -> Tensor:
    """The tokens before, back to the same column of the row above: side + 1, itself included."""
    return key >= query - side


def column(query: Tensor, key: Tensor, side: int) -> Tensor:
    """The tokens of the same column, at and above the row."""
    return key % side == query % side


def convolutional(query: Tensor, key: Tensor, side: int) -> Tensor:
    """The causal half of a centered 11x11 kernel, which wraps around the row's edge as `row` does.

    In raster order a key lies `rows * side + columns` behind its query, with rows in 0..5 and
    columns in -5..5.
    """
    reach = CONVOLUTION_KERNEL // 2
    distance = query - key
    return (distance <= reach * side + reach) & ((distance + reach) % side <= 2 * reach)


PATTERNS: dict[str, Predicate] = {
    "full": full,
    "row": row,
    "column": column,
    "convolutional": convolutional,
}


def layer_patterns(depth: int) -> list[str]:
    """The paper's order of patterns: row, column, row, row, and so on; the last convolutional."""
    patterns = ["column" if (i - 2) % 4 == 0 else "row" for i in range(1, depth + 1)]
    if depth > 1:
        patterns[-1] = "convolutional"
    return patterns


def sees(pattern: str, stream: Stream) -> Callable[[Tensor, Tensor], Tensor]:
    """The predicate on stream positions: text is causal, an image token sees the whole text."""
    first, side, image_sees = stream.first_image_position, stream.grid, PATTERNS[pattern]

    def predicate(query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & ((key < first) | image_sees(query - first, key - first, side))

    return predicate


@lru_cache(maxsize=64)
def dense_mask(pattern: str, stream: Stream) -> Tensor:
    """[L, L] booleans, True where the query (row) sees the key (column)."""
    positions = torch.arange(stream.length)
    return sees(pattern, stream)(positions[:, None], positions[None, :])


@dataclass(frozen=True)
class CachePlan:
    """Where a decoding step keeps image keys and which of them it reads.

    Args:
        slots: how many keys the layer must hold at once.
        write: slot of each image token's key, [N].
        read: for each image token as query, the slots that it reads (its own included): a slice
            where they are evenly spaced (reading it copies nothing), else their numbers.
    """

    slots: int
    write: list[int]
    read: list[slice | Tensor]

    @property
    def keys_read(self) -> list[int]:
        """How many image keys each image token reads."""
        every = range(self.slots)
        return [len(every[s]) if isinstance(s, slice) else len(s) for s in self.read]

    @cached_property
    def table(self) -> tuple[Tensor, Tensor]:
        """The same reads in equal shapes: slots [N, R], and which of them are meant, [N, R].

        Where R is `slots`, they are all of them in order.
        """
        read = [torch.arange(self.slots)[s] for s in self.read]
        most = max(map(len, read))
        if 2 * most > self.slots:  # then what is not seen costs less than picking out the rest
            seen = torch.zeros(len(read), self.slots, dtype=torch.bool)
            for token, slots in enumerate(read):
                seen[token, slots] = True
            return torch.arange(self.slots).expand(len(read), -1), seen
        padded = torch.zeros(len(read), most, dtype=torch.long)
        for token, slots in enumerate(read):
            padded[token, : len(slots)] = slots
        return padded, torch.arange(most) < torch.tensor([[len(slots)] for slots in read])


@lru_cache(maxsize=64)
def cache_plan(pattern: str, stream: Stream) -> CachePlan:
    """The smallest cache for a pattern, by giving a key's slot away after its last reader.

    A row layer needs side + 1 slots and a convolutional one about five rows, at any grid; a column
    layer needs them all, because the bottom row reads the top one.
    """
    first = stream.first_image_position
    visible = dense_mask(pattern, stream)[first:, first:]  # the last image token is no input
    count = len(visible)
    readers = torch.arange(count)[:, None].expand(count, count)
    last_reader = torch.where(visible, readers, -1).amax(dim=0).tolist()
    slot_of: list[int] = []
    free: list[int] = []
    slots = 0
    leaving: dict[int, list[int]] = {}
    for token in range(count):
        free += leaving.pop(token - 1, [])
        if free:
            slot = free.pop(0)
        else:
            slot, slots = slots, slots + 1
        slot_of.append(slot)
        leaving.setdefault(last_reader[token], []).append(slot)
    slot_index = torch.tensor(slot_of)
    read = [_as_slice(slot_index[visible[token]]) for token in range(count)]
    return CachePlan(slots, slot_of, read)


def _as_slice(indices: Tensor) -> slice | Tensor:
    """The slice that takes the same elements, in whatever order, where there is one."""
    ordered = indices.sort().values
    start, stop = int(ordered[0]), int(ordered[-1]) + 1
    step = int(ordered[1]) - start if len(ordered) > 1 else 1
    even = ordered.equal(torch.arange(start, stop, step))
    return slice(start, stop, step) if even else ordered
