"""Attention to the text and to windows of image keys, under one softmax.

The two are attended to apart and joined by the logarithms of their softmaxes' sums, so that the
text's keys are copied to no window, and no score is kept for the backward pass. The gradients are
those of each part under the joint softmax, in which a key's weight is exp(score - joint logarithm).

A part goes through PyTorch's fused kernel; a window in bf16, where that kernel is slow on short
sequences, through the products that it is made of (benchmarks/attention.py). Windows are taken of
one sample after the other: so they are views, and small enough for the processor's caches.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tilewright.prior.window_plan import WindowPlan

_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class TextAndWindow(torch.autograd.Function):
    """`TextAndWindow.apply(q, k, v, plan)`: attention over the whole stream, on a CPU.

    Args:
        q, k, v: [B, H, L, D].
        plan: how the pattern is cut.

    Returns:
        [B, H, L, D].
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: WindowPlan) -> Tensor:
        attention = _products if q.dtype == torch.bfloat16 else _fused
        bias = plan.bias.to(q)[None]
        out, log_sum = _fused(q, k[:, :, : plan.text], v[:, :, : plan.text], 0.0, True)
        for q_i, k_i, v_i, out_i, log_sum_i in zip(q, k, v, out, log_sum, strict=True):
            window, of_window = attention(
                plan.blocks(q_i), plan.windows(k_i), plan.windows(v_i), 0.0, False, attn_mask=bias
            )
            blocks, of_text = plan.blocks(out_i), plan.blocks(log_sum_i)
            joint = torch.logaddexp(of_text, of_window)
            blocks *= (of_text - joint).exp_().unsqueeze(-1)
            blocks += window * (of_window - joint).exp_().unsqueeze(-1)
            of_text.copy_(joint)
        ctx.save_for_backward(q, k, v, out, log_sum)
        ctx.plan = plan
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), plan, (q, k, v, out, log_sum) = gradients, ctx.plan, ctx.saved_tensors
        attention = _products_backward if q.dtype == torch.bfloat16 else _fused_backward
        bias = plan.bias.to(q)[None]
        text_k, text_v = k[:, :, : plan.text], v[:, :, : plan.text]
        of_q, of_text_k, of_text_v = _fused_backward(
            gradient, q, text_k, text_v, out, log_sum, 0.0, True
        )
        before = max(plan.reach - k.shape[2], 0)
        of_k, of_v = (
            F.pad(x, (0, 0, before, k.shape[2] - plan.text)) for x in (of_text_k, of_text_v)
        )
        for i in range(len(q)):
            of_blocks, of_windows_k, of_windows_v = attention(
                plan.blocks(gradient[i]),
                plan.blocks(q[i]),
                plan.windows(k[i]),
                plan.windows(v[i]),
                plan.blocks(out[i]),
                plan.blocks(log_sum[i]),
                0.0,
                False,
                attn_mask=bias,
            )
            plan.blocks(of_q[i]).add_(of_blocks)
            plan.add_windows(of_k[i], of_windows_k)
            plan.add_windows(of_v[i], of_windows_v)
        return of_q, of_k[:, :, before:], of_v[:, :, before:], None


def _scaled(x: Tensor) -> Tensor:
    return x * x.shape[-1] ** -0.5


# A window is a view whose blocks overlap; the products would copy it transposed, which takes longer
# than to copy it as it lies.
def _products(q: Tensor, k: Tensor, v: Tensor, *_: Any, attn_mask: Tensor) -> tuple[Tensor, Tensor]:
    """As `_fused`: attention [..., N, D], and the logarithm of its softmax's sum [..., N]."""
    scores = (_scaled(q) @ k.contiguous().mT).add_(attn_mask)
    highest = scores.float().amax(-1, keepdim=True).to(q.dtype)  # in bf16 four times as slow
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
    q, k, v = _scaled(q), k.contiguous(), v.contiguous()
    log_sum = log_sum.unsqueeze(-1)
    high = log_sum.to(q.dtype)
    low = (log_sum - high).to(q.dtype)  # the digits that bf16 has no room for
    weights = (q @ k.mT).add_(attn_mask).sub_(high).sub_(low).exp_()
    of_scores = gradient @ v.mT
    of_scores.sub_((gradient * out).sum(-1, keepdim=True)).mul_(weights)
    return _scaled(of_scores @ k), of_scores.mT @ q, weights.mT @ gradient
