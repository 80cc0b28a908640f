"""Tiling of a sparse pattern into query blocks, each with a window of image keys, for the CPU.

A mask alone saves nothing on a CPU: hidden scores are computed and thrown away. So neighboring
queries form a block that reads only its window: the image keys from the earliest visible one to the
block's own end. A column pattern takes the grid's columns as blocks, which need no keys of other
columns (appendix B.1).
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from tilewright.prior.patterns import dense_mask
from tilewright.prior.stream import BaseStream

BLOCK_SIZE = 64  # queries; smaller products are slow, larger blocks read more hidden keys
HIDDEN = -1e30  # finite, so that a query without a visible key in its window has a finite sum


@dataclass(frozen=True)
class WindowTiling:
    """Shape of a tiling, and the views of one sample that follow from it.

    The tiling covers the stream's last N positions. Only N - 1 image tokens are inputs, so the
    first of these positions is the last text token. It is hidden as a query and as a key.

    Args:
        text_length: number of positions before the first image token, 1 + T.
        bias: [blocks, block, keys], 0 for visible keys of a query's window, otherwise `HIDDEN`.
            A window ends where its block ends.
        columns: True if blocks are columns of the grid, False if they are stretches of the raster.
    """

    text_length: int
    bias: Tensor
    columns: bool

    @property
    def num_scores(self) -> int:
        """Number of scores that are computed for the image tokens."""
        blocks, block, keys = self.bias.shape
        return blocks * block * (self.text_length + keys)

    @property
    def span(self) -> int:
        """Number of keys from the first window's start to the last window's end.

        The first window may start before the sample does.
        """
        blocks, block, keys = self.bias.shape
        return (blocks - 1) * block + keys

    def blocks(self, x: Tensor) -> Tensor:
        """Returns a view [H, blocks, block, ...] of one sample's states [H, L, ...]."""
        blocks, block, _ = self.bias.shape
        x = x[:, -blocks * block :]
        if self.columns:
            return x.unflatten(1, (block, blocks)).transpose(1, 2)
        return x.unflatten(1, (blocks, block))

    def windows(self, x: Tensor) -> Tensor:
        """Returns the windows [H, blocks, keys, D] of one sample's keys or values [H, L, D]."""
        if self.columns:
            return self.blocks(x)
        _, block, keys = self.bias.shape
        missing = self.span - x.shape[1]
        x = F.pad(x, (0, 0, missing, 0)) if missing > 0 else x[:, -self.span :]
        return x.unfold(1, keys, block).transpose(2, 3)

    def add_windows(self, x: Tensor, windows: Tensor) -> None:
        """Adds windows [H, blocks, keys, D] in place to the positions that they are views of.

        Args:
            x: gradients of one sample's keys or values, [H, at least `span`, D].
        """
        if self.columns:
            self.blocks(x).add_(windows)
            return
        blocks, block, keys = self.bias.shape
        x = x[:, -self.span :]
        for end in range(keys, 0, -block):  # slices of one block at most, which do not overlap
            start = max(end - block, 0)
            slices = x[:, start : start + blocks * block].unflatten(1, (blocks, block))
            slices[:, :, : end - start] += windows[:, :, start:end]


@lru_cache(maxsize=64)
def window_tiling(pattern: str, stream: BaseStream, block_size: int = BLOCK_SIZE) -> WindowTiling:
    """Returns the tiling of a pattern, derived from its dense mask.

    Args:
        block_size: queries per block. Where it does not divide N, blocks are smaller. It is at
            least the grid's side.
    """
    first, count, side = stream.first_image_position, stream.image_length, stream.grid
    visible = F.pad(dense_mask(pattern, stream)[first:, first:], (1, 0, 1, 0))
    column = torch.arange(count) % side
    columns = not visible[column[:, None] != column].any()
    if columns:
        grid = torch.arange(count).view(side, side).T
        hidden = ~visible[grid[:, :, None], grid[:, None, :]]
    else:
        limit = max(block_size, side)
        block = max(n for n in range(1, limit + 1) if count % n == 0)
        hidden = ~_cut_windows(visible, block)
    return WindowTiling(first, torch.zeros(hidden.shape).masked_fill(hidden, HIDDEN), columns)


def _cut_windows(visible: Tensor, block: int) -> Tensor:
    """Cuts a mask [N, N] into the windows' masks [blocks, block, keys]."""
    starts = torch.arange(0, len(visible), block)
    rows = visible.unflatten(0, (-1, block))
    earliest = rows.any(dim=1).int().argmax(dim=1)
    lookback = max(int((starts - earliest).max()), 0)
    rows = F.pad(rows, (lookback, 0))
    keys = lookback + block
    windows = [row[:, start : start + keys] for row, start in zip(rows, starts, strict=True)]
    return torch.stack(windows)
