"""Attention over the whole stream in blocks of queries, each with the window of keys that it needs.

On a CPU a mask saves nothing by itself: what it hides is computed and thrown away. Cut into blocks
of neighbouring queries, a sparse pattern becomes a few dense attentions: a block reads the text and
the image keys from `look_back` tokens before it to its end. Column attention, whose keys lie a row
apart, is cut in a grid that is read down its columns, as the paper does (appendix B.1).
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from tilewright.prior.masks import dense_mask
from tilewright.prior.stream import Stream
from tilewright.prior.text_and_window import TextAndWindow

BLOCK = 64  # queries; fewer are products too small to be fast, more read keys that few of them see
HIDDEN = -1e30  # a score; a query of padding, which sees nothing, still has a finite sum


@dataclass(frozen=True)
class WindowPlan:
    """How a pattern is cut.

    Args:
        down_columns: whether the grid is read down its columns instead of along its rows.
        block: queries to a block.
        look_back: image keys that a block reads before its own first.
        text: text keys, which every block reads.
        bias: [blocks, block, keys], keys being those looked back to, then the block's own; 0 where
            the query sees the key and HIDDEN where not.
    """

    down_columns: bool
    block: int
    look_back: int
    text: int
    bias: Tensor

    @property
    def scores(self) -> int:
        """How many products of a query and a key are computed for the image tokens."""
        blocks, block, keys = self.bias.shape
        return blocks * block * (self.text + keys)


@lru_cache(maxsize=64)
def window_plan(pattern: str, stream: Stream, block: int = BLOCK) -> WindowPlan:
    """The plan that computes least for a pattern, by its dense mask."""
    first, count, side = stream.first_image_position, stream.image_length, stream.grid
    visible = torch.eye(count, dtype=torch.bool)  # the last image token is no input; it is padding
    visible[:-1, :-1] = dense_mask(pattern, stream)[first:, first:]
    raster = torch.arange(count)
    plans = []
    for down_columns in (False, True):
        order = raster.view(side, side).T.flatten() if down_columns else raster
        reordered = visible[order][:, order]
        if not reordered.triu(1).any():  # else a key would come after its query
            plans.append(_cut(reordered, down_columns, min(block, count), first))
    return min(plans, key=lambda plan: plan.scores)


def _cut(visible: Tensor, down_columns: bool, block: int, text: int) -> WindowPlan:
    count = len(visible)
    starts = torch.arange(0, count, block)
    padding = len(starts) * block - count
    rows = F.pad(visible, (0, padding, 0, padding)).unflatten(0, (-1, block))
    earliest = rows.any(dim=1).int().argmax(dim=1)
    look_back = int((starts - earliest).max())
    rows = F.pad(rows, (look_back, 0))
    windows = [row[:, at : at + look_back + block] for row, at in zip(rows, starts, strict=True)]
    hidden = ~torch.stack(windows)
    bias = torch.zeros(hidden.shape).masked_fill(hidden, HIDDEN)
    return WindowPlan(down_columns, block, look_back, text, bias)


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, plan: WindowPlan, stream: Stream) -> Tensor:
    """Attention [B, H, L, D] over the whole stream under the plan's pattern, on a CPU."""
    first, side = stream.first_image_position, stream.grid
    bias = plan.bias.to(q)

    def turn(x: Tensor) -> Tensor:
        """Image states [B, H, N, D] from one order of the grid to the other."""
        if not plan.down_columns:
            return x
        return x.unflatten(2, (side, side)).transpose(2, 3).flatten(2, 3)

    def image(x: Tensor) -> Tensor:
        """The image's queries or keys, with padding for the last token and to whole blocks."""
        whole = turn(F.pad(x[:, :, first:], (0, 0, 0, 1)))
        return F.pad(whole, (0, 0, 0, len(bias) * plan.block - stream.image_length))

    text_q, text_k, text_v = (x[:, :, :first] for x in (q, k, v))
    of_text = F.scaled_dot_product_attention(text_q, text_k, text_v, is_causal=True)
    of_image = TextAndWindow.apply(
        image(q), text_k, text_v, image(k), image(v), bias, plan.look_back
    )
    of_image = turn(of_image[:, :, : stream.image_length])
    return torch.cat([of_text, of_image[:, :, :-1]], dim=2)
