"""Attention of image queries to the whole text and to a window of image keys, under one softmax.

The two are attended to apart and joined by the logarithms of their softmaxes' sums, so that the
text's keys are copied to no window, and no score is kept for the backward pass. The gradients are
those of each part under the joint softmax, in which a key's weight is exp(score - joint logarithm).

A part goes through PyTorch's fused kernel; a window in bf16, where that kernel is slow on short
sequences, through the products that it is made of (benchmarks/attention.py).
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class TextAndWindow(torch.autograd.Function):
    """`TextAndWindow.apply(q, text_k, text_v, k, v, bias, look_back)`, on a CPU.

    Args:
        q: image queries [B, H, N, D], N being blocks * block.
        text_k, text_v: [B, H, T, D], seen by every query.
        k, v: of the image [B, H, N, D].
        bias: [blocks, block, look_back + block], added to the scores of a block with its window,
            which begins `look_back` keys before the block; very negative, but finite, to hide.

    Returns:
        [B, H, N, D].
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        text_k: Tensor,
        text_v: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor,
        look_back: int,
    ) -> Tensor:
        attention = _products if q.dtype == torch.bfloat16 else _fused
        of_text, text_sum = _fused(q, text_k, text_v, 0.0, False)
        cut = _blocks(q, bias), _windows(k, bias, look_back), _windows(v, bias, look_back)
        of_window, window_sum = attention(*cut, 0.0, False, attn_mask=bias[None])
        window_sum = window_sum.reshape(text_sum.shape)
        joint = torch.logaddexp(text_sum, window_sum)
        out = of_text * (text_sum - joint).exp().unsqueeze(-1).to(q.dtype)
        out += of_window.reshape(q.shape) * (window_sum - joint).exp().unsqueeze(-1).to(q.dtype)
        ctx.save_for_backward(q, text_k, text_v, k, v, bias, out, joint)
        ctx.look_back = look_back
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, text_k, text_v, k, v, bias, out, joint = ctx.saved_tensors
        gradient, look_back = gradients[0].contiguous(), ctx.look_back
        attention = _products_backward if q.dtype == torch.bfloat16 else _fused_backward
        of_q, of_text_k, of_text_v = _fused_backward(
            gradient, q, text_k, text_v, out, joint, 0.0, False
        )
        of_blocks, of_k, of_v = attention(
            _blocks(gradient, bias),
            _blocks(q, bias),
            _windows(k, bias, look_back),
            _windows(v, bias, look_back),
            _blocks(out, bias),
            _blocks(joint.unsqueeze(-1), bias).squeeze(-1),
            0.0,
            False,
            attn_mask=bias[None],
        )
        of_q = of_q + of_blocks.reshape(q.shape)
        of_k, of_v = (_sum_windows(x, look_back).view(k.shape) for x in (of_k, of_v))
        return of_q, of_text_k, of_text_v, of_k, of_v, None, None


def _blocks(x: Tensor, bias: Tensor) -> Tensor:
    """[B, H, N, D] to [B * H, blocks, block, D]."""
    return x.flatten(0, 1).unflatten(1, bias.shape[:2])


def _windows(x: Tensor, bias: Tensor, look_back: int) -> Tensor:
    """Image keys [B, H, N, D] to the window of each block [B * H, blocks, look_back + block, D]."""
    _, block, keys = bias.shape
    return F.pad(x.flatten(0, 1), (0, 0, look_back, 0)).unfold(1, keys, block).transpose(2, 3)


def _sum_windows(x: Tensor, look_back: int) -> Tensor:
    """Gradients of windows [B * H, blocks, look_back + block, D] to the keys' [B * H, N, D]."""
    blocks, block = x.shape[1], x.shape[2] - look_back
    parts = x.split(block, dim=2)  # of a window, each as long as the step to the next one
    total = x.new_zeros(len(x), blocks + len(parts) - 1, block, x.shape[-1])
    for i, part in enumerate(parts):
        total[:, i : i + blocks, : part.shape[2]] += part
    return total.flatten(1, 2)[:, look_back : look_back + blocks * block]


def _scaled(x: Tensor) -> Tensor:
    return x * x.shape[-1] ** -0.5


def _products(q: Tensor, k: Tensor, v: Tensor, *_: Any, attn_mask: Tensor) -> tuple[Tensor, Tensor]:
    """As `_fused`: attention [..., N, D], and the logarithm of its softmax's sum [..., N]."""
    scores = (_scaled(q) @ k.mT).add_(attn_mask)
    highest = scores.amax(-1, keepdim=True)
    weights = scores.sub_(highest).exp_()
    total = weights.sum(-1, keepdim=True, dtype=torch.float32)
    return (weights @ v).div_(total), (total.log() + highest).squeeze(-1)


def _products_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sum: Tensor,
    *_: Any,
    attn_mask: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_fused_backward`: the gradients of q, k and v."""
    q = _scaled(q)
    weights = (q @ k.mT).add_(attn_mask).sub_(log_sum.unsqueeze(-1)).exp_()
    of_scores = gradient @ v.mT
    of_scores.sub_((gradient * out).sum(-1, keepdim=True)).mul_(weights)
    return _scaled(of_scores @ k), of_scores.mT @ q, weights.mT @ gradient
