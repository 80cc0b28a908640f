"""Attention in windows against attention under the dense mask: values, gradients, what is kept."""

import pytest
import torch
from torch.nn import functional as F

from tilewright.prior import Stream
from tilewright.prior.patterns import PATTERNS, dense_mask
from tilewright.prior.window_attention import TextAndWindow
from tilewright.prior.window_plan import window_plan


def stream(text=3, grid=4):
    return Stream(text_length=text, text_vocab=5, grid=grid, image_vocab=5)


def inputs(of):
    torch.manual_seed(0)
    return torch.randn(3, 2, 2, of.length, 4, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(
    ("grid", "block"), [(4, 4), (4, 8), (4, 128), (8, 8), (6, 9), (5, 7), (1, 1)]
)
def test_outputs_and_gradients_are_those_of_the_dense_mask(pattern, grid, block):
    of = stream(grid=grid)
    ours, theirs = inputs(of), inputs(of)
    windowed = TextAndWindow.apply(*ours, window_plan(pattern, of, block))
    mask = dense_mask(pattern, of)
    dense = F.scaled_dot_product_attention(*theirs, attn_mask=mask)
    torch.testing.assert_close(windowed, dense)
    weights = torch.randn_like(dense)
    for out in (windowed, dense):
        (out * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_bf16_differs_from_fp32_by_its_digits(pattern):
    of = stream(grid=8)
    exact = inputs(of).detach().bfloat16().float().requires_grad_()
    short = exact.detach().bfloat16().requires_grad_()
    plan = window_plan(pattern, of, 16)
    outputs = [TextAndWindow.apply(*x, plan) for x in (exact, short)]
    weights = torch.randn_like(outputs[0])
    for out in outputs:
        (out * weights).float().sum().backward()
    assert outputs[1].dtype == torch.bfloat16
    torch.testing.assert_close(outputs[1].float(), outputs[0], rtol=0, atol=0.03)
    torch.testing.assert_close(short.grad.float(), exact.grad, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_scores_are_kept_for_the_backward_pass(dtype):
    of = stream(text=100, grid=16)
    plan = window_plan("row", of)
    x = inputs(of).detach().to(dtype).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()), lambda t: t):
        TextAndWindow.apply(*x, plan)
    heads = x.shape[1] * x.shape[2]
    assert max(kept) < heads * of.image_length * plan.text / 2


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_output_depends_on_the_keys_of_its_mask_and_no_other(pattern):
    of = stream(grid=6)
    q, k, v = inputs(of).detach()
    plan = window_plan(pattern, of, 6)
    before = TextAndWindow.apply(q, k, v, plan)
    visible = dense_mask(pattern, of)
    for key in range(of.length):
        moved = k.clone(), v.clone()
        for x in moved:
            x[:, :, key] += 1
        changed = (TextAndWindow.apply(q, *moved, plan) - before).abs().amax(dim=(0, 1, 3))
        assert torch.equal(changed > 0, visible[:, key])
