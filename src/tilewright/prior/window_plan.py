"""How a sparse pattern is cut into blocks of queries, each with the window of keys that it needs.

On a CPU a mask saves nothing by itself: what it hides is computed and thrown away. Cut into blocks
of neighboring queries, a sparse pattern becomes a few dense attentions: beside the text, a block
reads the image keys from the earliest that one of its queries sees to its own end. Where all lie in
the query's own column, the blocks are the columns (appendix B.1), which need no others.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from tilewright.prior.patterns import dense_mask
from tilewright.prior.stream import Stream

BLOCK = 64  # queries; fewer are products too small to be fast, more read keys that few of them see
HIDDEN = -1e30  # a score; a query that sees nothing still has a finite sum


@dataclass(frozen=True)
class WindowPlan:
    """The cut of a pattern, and the views of a sample that follow from it.

    The last image token is no input, so that the stream's last N positions, N being the number of
    image tokens, begin with one of the text. It is cut along with the others, sees nothing in its
    window and is seen by nobody there.

    Args:
        text: number of text positions.
        bias: [blocks, block, keys], 0 where a query sees a key of its block's window and HIDDEN
            where not. A window ends where its block ends.
        columns: whether a block is a column of the grid. Else it is a part of the raster.
    """

    text: int
    bias: Tensor
    columns: bool

    @property
    def scores(self) -> int:
        """How many products of a query and a key are computed for the image tokens."""
        blocks, block, keys = self.bias.shape
        return blocks * block * (self.text + keys)

    @property
    def reach(self) -> int:
        """How many of a sample's last keys are in windows, those before its beginning included."""
        blocks, block, keys = self.bias.shape
        return (blocks - 1) * block + keys

    def blocks(self, x: Tensor) -> Tensor:
        """A sample's states [H, L, ...] to a view of those in blocks [H, blocks, block, ...]."""
        blocks, block, _ = self.bias.shape
        x = x[:, -blocks * block :]
        if self.columns:
            return x.unflatten(1, (block, blocks)).transpose(1, 2)
        return x.unflatten(1, (blocks, block))

    def windows(self, x: Tensor) -> Tensor:
        """A sample's keys [H, L, D] to the windows [H, blocks, keys, D]."""
        if self.columns:
            return self.blocks(x)
        _, block, keys = self.bias.shape
        before = self.reach - x.shape[1]
        x = F.pad(x, (0, 0, before, 0)) if before > 0 else x[:, -self.reach :]
        return x.unfold(1, keys, block).transpose(2, 3)

    def add_windows(self, x: Tensor, windows: Tensor) -> None:
        """Add to a sample's keys [H, at least `reach`, D] what was windows of them."""
        if self.columns:
            self.blocks(x).add_(windows)
            return
        blocks, block, keys = self.bias.shape
        x = x[:, -self.reach :]
        for end in range(keys, 0, -block):  # in parts no longer than the step between windows
            start = max(end - block, 0)
            parts = x[:, start : start + blocks * block].unflatten(1, (blocks, block))
            parts[:, :, : end - start] += windows[:, :, start:end]


@lru_cache(maxsize=64)
def window_plan(pattern: str, stream: Stream, block: int = BLOCK) -> WindowPlan:
    """The plan for a pattern, by its dense mask, in blocks of `block` queries or a few less."""
    first, count, side = stream.first_image_position, stream.image_length, stream.grid
    visible = F.pad(dense_mask(pattern, stream)[first:, first:], (1, 0, 1, 0))
    column = torch.arange(count) % side
    columns = not visible[column[:, None] != column].any()
    if columns:
        grid = torch.arange(count).view(side, side).T
        hidden = ~visible[grid[:, :, None], grid[:, None, :]]
    else:
        hidden = ~_cut(visible, max(n for n in range(1, max(block, side) + 1) if count % n == 0))
    return WindowPlan(first, torch.zeros(hidden.shape).masked_fill(hidden, HIDDEN), columns)


def _cut(visible: Tensor, block: int) -> Tensor:
    """Of who sees whom [N, N], each block with its window, [blocks, block, keys]."""
    starts = torch.arange(0, len(visible), block)
    rows = visible.unflatten(0, (-1, block))
    earliest = rows.any(dim=1).int().argmax(dim=1)
    look_back = max(int((starts - earliest).max()), 0)
    rows = F.pad(rows, (look_back, 0))
    windows = [row[:, at : at + look_back + block] for row, at in zip(rows, starts, strict=True)]
    return torch.stack(windows)
