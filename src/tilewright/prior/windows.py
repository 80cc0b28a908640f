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

BLOCK = 128  # queries; fewer copy the text's keys more often than they save image keys


@dataclass(frozen=True)
class WindowPlan:
    """How a pattern is cut.

    Args:
        down_columns: whether the grid is read down its columns instead of along its rows.
        block: queries to a block.
        look_back: image keys that a block reads before its own first.
        mask: [blocks, block, keys], keys being the text's, then those looked back to, then the
            block's own; True where the query sees the key.
    """

    down_columns: bool
    block: int
    look_back: int
    mask: Tensor

    @property
    def scores(self) -> int:
        """How many products of a query and a key are computed for the image tokens."""
        return self.mask.numel()


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
    # A padding query sees the text, as any other, so that its softmax is finite.
    mask = F.pad(torch.stack(windows), (text, 0), value=True)
    return WindowPlan(down_columns, block, look_back, mask)


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, plan: WindowPlan, stream: Stream) -> Tensor:
    """Attention [B, H, L, D] over the whole stream under the plan's pattern."""
    batch, heads, length, _ = q.shape
    first, side, mask = stream.first_image_position, stream.grid, plan.mask.to(q.device)

    def turn(x: Tensor) -> Tensor:
        """Image states [B * H, N, D] from one order of the grid to the other."""
        if not plan.down_columns:
            return x
        return x.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)

    def image(x: Tensor) -> Tensor:
        """The image's queries or keys, with padding for the last token and to whole blocks."""
        whole = turn(F.pad(x[:, :, first:].flatten(0, 1), (0, 0, 0, 1)))
        return F.pad(whole, (0, 0, 0, len(mask) * plan.block - stream.image_length))

    def windows(x: Tensor) -> Tensor:
        """Text keys and a window of image keys for each block, [B * H, blocks, keys, D]."""
        text = x[:, :, :first].flatten(0, 1).unsqueeze(1).expand(-1, len(mask), -1, -1)
        padded = F.pad(image(x), (0, 0, plan.look_back, 0))
        window = padded.unfold(1, plan.look_back + plan.block, plan.block).transpose(2, 3)
        return torch.cat([text, window], dim=2)

    of_text = F.scaled_dot_product_attention(
        q[:, :, :first], k[:, :, :first], v[:, :, :first], is_causal=True
    )
    blocks = image(q).unflatten(1, (-1, plan.block))
    of_image = F.scaled_dot_product_attention(blocks, windows(k), windows(v), attn_mask=mask[None])
    of_image = turn(of_image.flatten(1, 2)[:, : stream.image_length])
    of_image = of_image.unflatten(0, (batch, heads))[:, :, : length - first]
    return torch.cat([of_text, of_image], dim=2)
