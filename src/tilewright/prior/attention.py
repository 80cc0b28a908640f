"""Self-attention over the stream: whole sequences in training, one position at a time in sampling.

Whole sequences go through FlexAttention on CUDA, which skips what the mask hides. Elsewhere (it has
no backward on CPU) they go through scaled_dot_product_attention under a dense mask, or, on a CPU,
in windows where these save more than they cost.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from tilewright.prior.kv_cache import LayerCache
from tilewright.prior.norms import RMSNorm
from tilewright.prior.patterns import cache_plan, dense_mask, sees
from tilewright.prior.rotary import Rotary
from tilewright.prior.stream import Stream
from tilewright.prior.window_attention import TextAndWindow
from tilewright.prior.window_plan import WindowPlan, window_plan

# On a CPU (benchmarks/attention.py): windows, which are many small steps, take less time than a
# dense mask where there are more positions than this and they compute less than this share of all
# scores. In bf16, up to so many positions, the products that attention is made of take the least.
FEW = 256
WORTHWHILE = 0.6
SHORT_BF16 = 512

Mask = BlockMask | WindowPlan | Tensor | None


@lru_cache(maxsize=64)
def mask_on(pattern: str, stream: Stream, device: torch.device, dtype: torch.dtype) -> Mask:
    """Who sees whom, in the form in which it costs least.

    On CUDA which blocks there are to compute, on a CPU windows, where they pay, or what to add to
    the scores.

    Args:
        dtype: of the queries, keys and values.

    Returns:
        What `attend` takes; None hides what lies ahead, and nothing else.
    """
    if device.type == "cuda":
        return _block_mask(pattern, stream, device)
    if dtype == torch.bfloat16 and stream.length <= SHORT_BF16:
        hidden = ~dense_mask(pattern, stream)
        return torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf).to(device, dtype)
    if pattern == "full":
        return None
    if device.type == "cpu" and stream.length > FEW:
        plan = window_plan(pattern, stream)
        if plan.scores < WORTHWHILE * stream.length**2:
            return plan
    return dense_mask(pattern, stream).to(device)


@torch.inference_mode(False)  # it is kept, and made in inference it could not be trained with
def _block_mask(pattern: str, stream: Stream, device: torch.device) -> BlockMask:
    predicate = sees(pattern, stream)
    return create_block_mask(
        lambda _batch, _head, query, key: predicate(query, key),
        None,
        None,
        stream.length,
        stream.length,
        device=device,
    )


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Attention [B, H, L, D] over the whole stream, under a mask of `mask_on`."""
    if isinstance(mask, BlockMask):  # slow where it is not compiled, with all around it or alone
        together = torch.compiler.is_compiling()
        flex: Any = flex_attention if together else _compiled_flex_attention()
        return flex(q, k, v, block_mask=mask)
    if isinstance(mask, WindowPlan):
        return _windowed(q, k, v, mask)
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if mask.is_floating_point():
        return _products(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Callable:
    return torch.compile(flex_attention)


@torch.compiler.disable  # it would compile every sample's step apart, and there is little to fuse
def _windowed(q: Tensor, k: Tensor, v: Tensor, plan: WindowPlan) -> Tensor:
    return TextAndWindow.apply(q, k, v, plan)


def _products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention as the products that it is made of."""
    q, k = q.flatten(0, 1) * q.shape[-1] ** -0.5, k.flatten(0, 1)
    weights = torch.baddbmm(bias, q, k.transpose(1, 2)).softmax(dim=-1)
    return (weights @ v.flatten(0, 1)).view_as(v)


@torch.compiler.disable  # it would trace the making of the plan, a loop over positions
def _cache(k: Tensor, v: Tensor, candidates: int, pattern: str, stream: Stream) -> LayerCache:
    return LayerCache(k, v, candidates, cache_plan(pattern, stream))


class SelfAttention(nn.Module):
    """Multi-head attention under one pattern's mask, with fused projections.

    Args:
        dim: width of the states; `heads` heads of dim / heads each.
        pattern: a name in `masks.PATTERNS`.
        rotary: turns queries and keys by their positions; None where the states know them.
        qk_norm: normalize queries and keys, which keeps their products small in long trainings.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        pattern: str,
        stream: Stream,
        rotary: Rotary | None = None,
        qk_norm: bool = False,
    ):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads, got {dim} and {heads}")
        self.heads = heads
        self.pattern = pattern
        self.stream = stream
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.rotary = rotary
        self.q_norm = RMSNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(dim // heads) if qk_norm else nn.Identity()

    def _project(self, x: Tensor) -> Tensor:
        """States [..., dim] to their queries, keys and values [..., 3, H, D]."""
        return self.qkv(x).unflatten(-1, (3, self.heads, -1))

    def _placed(
        self, qkv: Tensor, positions: slice | int | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [3, ..., D], normalized and turned as the positions ask."""
        q, k, v = qkv.unbind()  # unpacked, each one's gradient would be as large as that of all
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if self.rotary is not None:
            q, k = self.rotary(q, positions), self.rotary(k, positions)
        return q, k, v

    def _whole(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States [B, n, dim] of the stream's first n positions to q, k, v [B, H, n, D]."""
        return self._placed(self._project(x).permute(2, 0, 3, 1, 4), slice(x.shape[1]))

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """States [B, L, dim] of the whole stream, under the pattern's mask (`mask_on`)."""
        y = attend(*self._whole(x), mask)
        return self.out(y.transpose(1, 2).flatten(2))

    def prefill(self, x: Tensor, candidates: int) -> tuple[Tensor, LayerCache]:
        """States [C, 1 + T, dim] of start and text, which are causal in every pattern."""
        q, k, v = self._whole(x)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        cache = _cache(k, v, candidates, self.pattern, self.stream)
        return self.out(y.transpose(1, 2).flatten(2)), cache

    def step(self, x: Tensor, token: int | Tensor, cache: LayerCache) -> Tensor:
        """State [C * n, dim] of image token number `token`, the cache holding all before it."""
        qkv = self._project(x).unflatten(0, (-1, cache.candidates)).permute(2, 0, 3, 1, 4)
        q, k, v = self._placed(qkv, self.stream.first_image_position + token)
        cache.store(token, k, v)
        return self.out(cache.attend(token, q).transpose(1, 2).reshape(x.shape))
