"""Self-attention over the stream: whole sequences in training, one position at a time in sampling.

Whole sequences go through FlexAttention on CUDA, which skips what the mask hides. Elsewhere (it has
no backward on CPU) they go through scaled_dot_product_attention: in windows where these save more
than they cost, under a dense mask where not.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from tilewright.prior.masks import CachePlan, cache_plan, dense_mask, sees
from tilewright.prior.norms import RMSNorm
from tilewright.prior.rotary import Rotary
from tilewright.prior.stream import Stream
from tilewright.prior.windows import window_plan, windowed_attention

# Windows are worth their copying where they compute less than this share of all scores.
WORTHWHILE = 0.5
# Up to so many positions, scaled_dot_product_attention in bf16 on a CPU takes longer than the
# products that it is made of (benchmarks/attention.py).
SHORT = 512


@lru_cache(maxsize=64)
def _dense_mask_on(pattern: str, stream: Stream, device: torch.device) -> Tensor:
    return dense_mask(pattern, stream).to(device)


@lru_cache(maxsize=64)
def _bias_on(pattern: str, stream: Stream, device: torch.device) -> Tensor:
    """0 where the query sees the key and -inf where not, in bf16."""
    hidden = ~dense_mask(pattern, stream)
    return torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf).bfloat16().to(device)


def _products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention as the products that it is made of."""
    q, k = q.flatten(0, 1) * q.shape[-1] ** -0.5, k.flatten(0, 1)
    weights = torch.baddbmm(bias, q, k.transpose(1, 2)).softmax(dim=-1)
    return (weights @ v.flatten(0, 1)).view_as(v)


@lru_cache(maxsize=64)
def _block_mask_on(pattern: str, stream: Stream, device: torch.device) -> BlockMask:
    predicate = sees(pattern, stream)
    return create_block_mask(
        lambda _batch, _head, query, key: predicate(query, key),
        None,
        None,
        stream.length,
        stream.length,
        device=device,
    )


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Callable:
    return torch.compile(flex_attention)


def attend(q: Tensor, k: Tensor, v: Tensor, pattern: str, stream: Stream) -> Tensor:
    """Attention [B, H, L, D] over the whole stream under a pattern's mask."""
    if q.is_cuda:
        blocks = _block_mask_on(pattern, stream, q.device)
        return _compiled_flex_attention()(q, k, v, block_mask=blocks)
    if q.dtype == torch.bfloat16 and stream.length <= SHORT:
        return _products(q, k, v, _bias_on(pattern, stream, q.device))
    if pattern == "full":  # without a mask it skips what lies ahead
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    plan = window_plan(pattern, stream)
    if plan.scores < WORTHWHILE * stream.length**2:
        return windowed_attention(q, k, v, plan, stream)
    mask = _dense_mask_on(pattern, stream, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class LayerCache:
    """One layer's keys and values while `candidates` pictures are drawn for each caption.

    The start and text positions are held once a caption and shared by its candidates; each
    candidate's image positions are held in as few slots as the pattern allows.

    Args:
        text_kv: keys and values of start and text, each [C, H, 1 + T, D].
        candidates: n, pictures drawn for each caption.
    """

    def __init__(self, text_kv: tuple[Tensor, Tensor], candidates: int, plan: CachePlan):
        # Contiguous: they are read at every step, and every read of a part would copy it.
        self.text_k, self.text_v = (part.contiguous() for part in text_kv)
        captions, heads, _, width = self.text_k.shape
        self.plan = plan
        self.candidates = candidates
        shape = (captions * candidates, heads, plan.slots, width)
        self.image_k, self.image_v = self.text_k.new_zeros(shape), self.text_k.new_zeros(shape)
        device = self.text_k.device
        self._read = [s if isinstance(s, slice) else s.to(device) for s in plan.read]

    def store(self, token: int, k: Tensor, v: Tensor) -> None:
        """Keys and values [C * n, H, D] of image token number `token`."""
        slot = self.plan.write[token]
        self.image_k[:, :, slot], self.image_v[:, :, slot] = k, v

    def attend(self, token: int, q: Tensor) -> Tensor:
        """Attention [C * n, H, D] of image token number `token` to the text and to its mask."""
        slots = self._read[token]
        k, v = self.image_k[:, :, slots], self.image_v[:, :, slots]
        captions, heads, text, width = self.text_k.shape
        q = q * width**-0.5
        # A caption's candidates are so many queries to the same text keys.
        by_caption = q.view(captions, self.candidates, heads, width).transpose(1, 2)
        to_text = (
            (by_caption @ self.text_k.transpose(-1, -2)).transpose(1, 2).reshape(-1, heads, text)
        )
        to_image = (q.unsqueeze(2) @ k.transpose(-1, -2)).squeeze(2)
        # Text and image keys share one softmax (appendix B.1).
        weights = torch.cat([to_text, to_image], dim=-1).float().softmax(dim=-1).to(v.dtype)
        text_weights, image_weights = weights.split([text, k.shape[2]], dim=-1)
        from_text = text_weights.view(captions, self.candidates, heads, text).transpose(1, 2)
        from_text = (from_text @ self.text_v).transpose(1, 2).reshape(-1, heads, width)
        return from_text + (image_weights.unsqueeze(2) @ v).squeeze(2)


class SelfAttention(nn.Module):
    """Multi-head attention under one pattern's mask, with fused projections.

    Args:
        dim: width of the states; `heads` heads of dim / heads each.
        pattern: a name in `masks.PATTERNS`.
        rotary: turns queries and keys by their positions; None where the states know them.
        qk_norm: normalise queries and keys, which keeps their products small in long trainings.
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

    def _project(self, x: Tensor, first: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """States [B, n, dim] of positions `first` and on to queries, keys, values [B, H, n, D]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if self.rotary is not None:
            q, k = self.rotary(q, first), self.rotary(k, first)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        """States [B, L, dim] of the whole stream."""
        y = attend(*self._project(x), self.pattern, self.stream)
        return self.out(y.transpose(1, 2).flatten(2))

    def prefill(self, x: Tensor, candidates: int) -> tuple[Tensor, LayerCache]:
        """States [C, 1 + T, dim] of start and text, which are causal in every pattern."""
        q, k, v = self._project(x)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        plan = cache_plan(self.pattern, self.stream)
        return self.out(y.transpose(1, 2).flatten(2)), LayerCache((k, v), candidates, plan)

    def step(self, x: Tensor, token: int, cache: LayerCache) -> Tensor:
        """State [B, dim] of image token number `token`, the cache holding all before it."""
        position = self.stream.first_image_position + token
        q, k, v = (part.squeeze(2) for part in self._project(x.unsqueeze(1), position))
        cache.store(token, k, v)
        return self.out(cache.attend(token, q).flatten(1))
