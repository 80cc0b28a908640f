"""Attention of query blocks to the text and to their window of image keys, for training on a CPU.

One block of a row layer, on a grid of side 4. Each query attends to the text and to 5 image keys:

                  text keys         window of image keys
              +----------------+--------------------------+
    query 0   | x  x  x  x  x  |  x  x  x  x  x  .  .  .  |
    query 1   | x  x  x  x  x  |  .  x  x  x  x  x  .  .  |    x  visible
    query 2   | x  x  x  x  x  |  .  .  x  x  x  x  x  .  |    .  hidden: its bias is -1e30
    query 3   | x  x  x  x  x  |  .  .  .  x  x  x  x  x  |
              +----------------+--------------------------+
                one kernel call   one kernel call per sample,
                for all samples   for all of its blocks
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tilewright.prior.window_tiling import WindowTiling
from tilewright.training.compiling import outside_graphs


def reference_attention(q: Tensor, k: Tensor, v: Tensor, tiling: WindowTiling) -> Tensor:
    """Computes the output of `window_attention` for all blocks, as one plain softmax.

    Args:
        q, k, v: one sample, [H, L, D].

    Returns:
        [H, blocks, block, D].
    """
    text = [x[:, None, : tiling.text_length].expand(-1, len(tiling.bias), -1, -1) for x in (k, v)]
    keys = torch.cat([text[0], tiling.windows(k)], dim=2)
    values = torch.cat([text[1], tiling.windows(v)], dim=2)
    bias = F.pad(tiling.bias, (tiling.text_length, 0))  # the text is always visible
    scores = tiling.blocks(q) @ keys.mT * q.shape[-1] ** -0.5 + bias
    return scores.softmax(dim=-1) @ values


@outside_graphs  # a graph would unroll the loop over samples, with little to fuse
def window_attention(q: Tensor, k: Tensor, v: Tensor, tiling: WindowTiling) -> Tensor:
    """Computes attention over the whole stream on a CPU, from q, k and v [B, H, L, D]."""
    return _WindowAttention.apply(q, k, v, tiling)


class _WindowAttention(torch.autograd.Function):
    """Attention in two parts, text and window, joined by their log-sums.

    A part has an output and a log_sum, the logarithm of its softmax's denominator. Joined, they are

        log_sum = log(exp(text_log_sum) + exp(window_log_sum))
        out = exp(text_log_sum - log_sum) * text_out + exp(window_log_sum - log_sum) * window_out

    In the backward pass the kernels get the joint log_sum, so that a key's weight is
    exp(score - log_sum). No scores are saved, and no text keys are copied into windows.

    Samples are computed one by one, because windows of one sample are views and fit into the CPU's
    caches.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, tiling: WindowTiling) -> Tensor:
        attend_to_window = _unfused_attention if q.dtype == torch.bfloat16 else _flash_attention
        bias = tiling.bias.to(q)[None]
        text_k, text_v = k[:, :, : tiling.text_length], v[:, :, : tiling.text_length]
        out, log_sum = _flash_attention(q, text_k, text_v, causal=True)
        for q_i, k_i, v_i, out_i, log_sum_i in zip(q, k, v, out, log_sum, strict=True):
            window_out, window_log_sum = attend_to_window(
                tiling.blocks(q_i), tiling.windows(k_i), tiling.windows(v_i), bias=bias
            )
            text_out, text_log_sum = tiling.blocks(out_i), tiling.blocks(log_sum_i)
            joint_log_sum = torch.logaddexp(text_log_sum, window_log_sum)
            # In place: `text_out` and `text_log_sum` are views of `out` and `log_sum`.
            text_out *= (text_log_sum - joint_log_sum).exp_().unsqueeze(-1)
            text_out += window_out * (window_log_sum - joint_log_sum).exp_().unsqueeze(-1)
            text_log_sum.copy_(joint_log_sum)
        ctx.save_for_backward(q, k, v, out, log_sum)
        ctx.tiling = tiling
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad_out,), tiling, (q, k, v, out, log_sum) = gradients, ctx.tiling, ctx.saved_tensors
        bf16 = q.dtype == torch.bfloat16
        window_backward = _unfused_attention_backward if bf16 else _flash_attention_backward
        bias = tiling.bias.to(q)[None]
        text_k, text_v = k[:, :, : tiling.text_length], v[:, :, : tiling.text_length]
        grad_q, grad_text_k, grad_text_v = _flash_attention_backward(
            grad_out, q, text_k, text_v, out, log_sum, causal=True
        )
        missing = max(tiling.span - k.shape[2], 0)
        padding = (0, 0, missing, k.shape[2] - tiling.text_length)
        grad_k, grad_v = F.pad(grad_text_k, padding), F.pad(grad_text_v, padding)
        for i in range(len(q)):
            grad_blocks, grad_windows_k, grad_windows_v = window_backward(
                tiling.blocks(grad_out[i]),
                tiling.blocks(q[i]),
                tiling.windows(k[i]),
                tiling.windows(v[i]),
                tiling.blocks(out[i]),
                tiling.blocks(log_sum[i]),
                bias=bias,
            )
            tiling.blocks(grad_q[i]).add_(grad_blocks)
            tiling.add_windows(grad_k[i], grad_windows_k)
            tiling.add_windows(grad_v[i], grad_windows_v)
        return grad_q, grad_k[:, :, missing:], grad_v[:, :, missing:], None


# PyTorch's CPU kernels, called by their private names: scaled_dot_product_attention does not return
# the log-sum that joins the two parts.
def _flash_attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns attention [..., N, D] and the logarithms of its softmax sums [..., N]."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query=q, key=k, value=v, dropout_p=0.0, is_causal=causal, attn_mask=bias
    )


def _flash_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sum: Tensor,
    *,
    causal: bool = False,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients of q, k and v."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out=grad_out,
        query=q,
        key=k,
        value=v,
        out=out,
        logsumexp=log_sum,
        dropout_p=0.0,
        is_causal=causal,
        attn_mask=bias,
    )


# In bf16 the kernel is slow on short sequences (benchmarks/attention.py). Windows overlap: matmul
# would copy them transposed, which takes longer than `contiguous`.
def _unfused_attention(q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Computes `_flash_attention` with plain operations."""
    scores = (_scaled(q) @ k.contiguous().mT).add_(bias)
    highest = scores.float().amax(-1, keepdim=True).to(q.dtype)  # amax in bf16 takes 4 times longer
    weights = scores.sub_(highest).exp_()
    total = weights.sum(-1, keepdim=True, dtype=torch.float32)
    return (weights @ v).div_(total), (total.log() + highest).squeeze(-1)


def _unfused_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    log_sum: Tensor,
    *,
    bias: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes `_flash_attention_backward` with plain operations."""
    q, k, v = _scaled(q), k.contiguous(), v.contiguous()
    log_sum = log_sum.unsqueeze(-1)
    high = log_sum.to(q.dtype)
    low = (log_sum - high).to(q.dtype)  # digits that a single bf16 number cannot hold
    weights = (q @ k.mT).add_(bias).sub_(high).sub_(low).exp_()
    grad_scores = grad_out @ v.mT
    grad_scores.sub_((grad_out * out).sum(-1, keepdim=True)).mul_(weights)
    return _scaled(grad_scores @ k), grad_scores.mT @ q, weights.mT @ grad_out


def _scaled(x: Tensor) -> Tensor:
    return x * x.shape[-1] ** -0.5
