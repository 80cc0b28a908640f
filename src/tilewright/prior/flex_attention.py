"""Attention with block masks, which skips hidden blocks on CUDA (FlexAttention).

`attention` imports this module when a mask needs it, because FlexAttention is slow to import.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from tilewright.prior.patterns import attention_predicate
from tilewright.prior.stream import BaseStream
from tilewright.training.compiling import raise_recompile_limit


@torch.inference_mode(False)  # masks are cached, and training cannot use an inference tensor
def make_block_mask(pattern: str, stream: BaseStream, device: torch.device) -> BlockMask:
    """Returns the block mask of a pattern."""
    predicate = attention_predicate(pattern, stream)
    return create_block_mask(
        lambda _batch, _head, query, key: predicate(query, key),
        None,
        None,
        stream.length,
        stream.length,
        device=device,
    )


def block_attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Computes attention [B, H, L, D] over the whole stream with a block mask."""
    # Uncompiled FlexAttention is slow: it is compiled alone unless the caller is compiled.
    compiling = torch.compiler.is_compiling()
    flex: Any = flex_attention if compiling else compiled_flex_attention()
    return flex(q, k, v, block_mask=mask)


@lru_cache(maxsize=1)
def compiled_flex_attention() -> Callable:
    """Returns FlexAttention compiled alone."""
    raise_recompile_limit()  # three patterns in training, validation and a last batch are nine
    return torch.compile(flex_attention)
