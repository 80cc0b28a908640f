"""Self-attention over the stream: whole sequences in training, single positions in sampling.

CUDA runs FlexAttention, which skips hidden blocks. It has no backward pass on a CPU, so other
devices run scaled_dot_product_attention with a dense mask, or query blocks with windows of keys.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilewright.prior.kv_cache import LayerCache
from tilewright.prior.norms import RMSNorm
from tilewright.prior.patterns import dense_mask
from tilewright.prior.rotary import Rotary
from tilewright.prior.stream import BaseStream
from tilewright.prior.window_attention import window_attention
from tilewright.prior.window_tiling import WindowTiling, window_tiling

if TYPE_CHECKING:  # see `flex_attention`
    from torch.nn.attention.flex_attention import BlockMask

# Measured on a CPU with benchmarks/attention.py. Windows are faster than a dense mask for streams
# longer than MIN_LENGTH_FOR_WINDOWS, if they compute less than MAX_WINDOW_SHARE of all scores.
MIN_LENGTH_FOR_WINDOWS = 256
MAX_WINDOW_SHARE = 0.6
# In bf16, plain matrix products are fastest for streams up to this length.
MAX_LENGTH_FOR_PRODUCTS = 512

# FlexAttention compiles with Triton, which older GPUs (V100, T4) do not fully support.
FLEX_CAPABILITY = (8, 0)

Mask: TypeAlias = "BlockMask | WindowTiling | Tensor | None"


@lru_cache(maxsize=64)
def attention_mask(
    pattern: str, stream: BaseStream, device: torch.device, dtype: torch.dtype
) -> Mask:
    """Returns the mask of a pattern for `attend`, in the form that is fastest on the device.

    Args:
        dtype: dtype of queries, keys and values.

    Returns:
        One of

        - a block mask, on CUDA with a compute capability of `FLEX_CAPABILITY`;
        - a window tiling, on a CPU;
        - booleans [L, L], True for visible keys;
        - in bf16, a bias [L, L] to add to the scores;
        - None for a plain causal mask.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= FLEX_CAPABILITY:
        from tilewright.prior.flex_attention import make_block_mask

        return make_block_mask(pattern, stream, device)
    if dtype == torch.bfloat16 and stream.length <= MAX_LENGTH_FOR_PRODUCTS:
        hidden = ~dense_mask(pattern, stream)
        return torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf).to(device, dtype)
    if pattern == "full":
        return None
    if device.type == "cpu" and stream.length > MIN_LENGTH_FOR_WINDOWS:
        tiling = window_tiling(pattern, stream)
        if tiling.num_scores < MAX_WINDOW_SHARE * stream.length**2:
            return tiling
    return dense_mask(pattern, stream).to(device)


def hide_padding(visible: Tensor, visible_text: Tensor) -> Tensor:
    """Returns booleans [B, 1, n, n], True for visible keys, with a mask for each row of a batch.

    A hidden key remains visible to its own query, because a softmax needs a key.

    Args:
        visible: booleans [n, n], True for visible keys.
        visible_text: booleans [B, T], False for text to hide. Positions after it are not hidden.
    """
    positions = len(visible)
    keys = F.pad(visible_text, (0, positions - visible_text.shape[1]), value=True)
    diagonal = torch.eye(positions, dtype=torch.bool, device=visible.device)
    return (visible & keys[:, None, None, :]) | diagonal


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Computes attention [B, H, L, D] over the whole stream, with a mask of `attention_mask`."""
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if isinstance(mask, WindowTiling):
        return window_attention(q, k, v, mask)
    if isinstance(mask, Tensor):
        if mask.is_floating_point():
            return _attention_by_products(q, k, v, mask)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    from tilewright.prior.flex_attention import block_attention

    return block_attention(q, k, v, mask)


def _attention_by_products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    q, k = q.flatten(0, 1) * q.shape[-1] ** -0.5, k.flatten(0, 1)
    weights = torch.baddbmm(bias, q, k.transpose(1, 2)).softmax(dim=-1)
    return (weights @ v.flatten(0, 1)).view_as(v)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one pattern, with fused projections.

    Args:
        dim: width of the states, a multiple of heads.
        heads: H, number of heads.
        pattern: a name in `patterns.PATTERNS`.
        stream: token layout.
        rotary: rotates queries and keys by position. None if the states hold their positions.
        qk_norm: normalize queries and keys, which bounds the scores in long trainings.
        bias: add biases.

    Raises:
        ValueError: dim is not a multiple of heads.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        pattern: str,
        stream: BaseStream,
        rotary: Rotary | None = None,
        qk_norm: bool = False,
        bias: bool = True,
    ):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim={dim} is not a multiple of heads={heads}: change one of them")
        self.heads = heads
        self.pattern = pattern
        self.stream = stream
        self.qkv = nn.Linear(dim, 3 * dim, bias)
        self.out = nn.Linear(dim, dim, bias)
        self.rotary = rotary
        self.q_norm = RMSNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(dim // heads) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """Computes the outputs of the whole stream.

        Args:
            x: states [B, L, dim].
            mask: `attention_mask` of the pattern.
        """
        y = attend(*self._project_sequence(x), mask)
        return self.out(y.transpose(1, 2).flatten(2))

    def prefill(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the outputs of the text's positions, which are causal in every pattern.

        Args:
            x: states [C, P, dim].
            mask: booleans [C, 1, P, P], True for visible keys. None is causal.

        Returns:
            Outputs [C, P, dim], and keys and values [C, H, P, D] for the cache.
        """
        q, k, v = self._project_sequence(x)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.out(y.transpose(1, 2).flatten(2)), k, v

    def step(self, x: Tensor, index: int | Tensor, cache: LayerCache) -> Tensor:
        """Computes the output of one image token, and stores its key and value in the cache.

        Args:
            x: states [C * n, dim].
            index: index of the image token in raster order.
            cache: keys and values of all earlier tokens.
        """
        qkv = self._project(x).unflatten(0, (-1, cache.candidates)).permute(2, 0, 3, 1, 4)
        q, k, v = self._normalize_and_rotate(qkv, self.stream.first_image_position + index)
        cache.store(index, k, v)
        return self.out(cache.attend(index, q).transpose(1, 2).reshape(x.shape))

    def _project(self, x: Tensor) -> Tensor:
        """Projects states [..., dim] to queries, keys and values [..., 3, H, D]."""
        return self.qkv(x).unflatten(-1, (3, self.heads, -1))

    def _project_sequence(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projects states [B, n, dim] of the stream's first n positions to q, k, v [B, H, n, D]."""
        return self._normalize_and_rotate(
            self._project(x).permute(2, 0, 3, 1, 4), slice(x.shape[1])
        )

    def _normalize_and_rotate(
        self, qkv: Tensor, positions: slice | int | Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalizes and rotates queries and keys, and returns them with the values."""
        q, k, v = qkv.unbind()  # indexing would make each gradient as large as that of qkv
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if self.rotary is not None:
            q, k = self.rotary(q, positions), self.rotary(k, positions)
        return q, k, v
