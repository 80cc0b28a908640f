"""Window attention against plain softmax attention: outputs, gradients, and saved tensors."""

import pytest
import torch
from torch.nn import functional as F

from tilewright.prior import Stream
from tilewright.prior.patterns import PATTERNS, dense_mask
from tilewright.prior.window_attention import reference_attention, window_attention
from tilewright.prior.window_tiling import window_tiling

GRIDS_AND_BLOCKS = [(4, 4), (4, 8), (4, 128), (8, 8), (6, 9), (5, 7), (1, 1)]


def make_stream(text_length=3, grid=4):
    return Stream(text_length=text_length, text_vocab=5, grid=grid, image_vocab=5)


def make_qkv(stream):
    torch.manual_seed(0)
    return torch.randn(3, 2, 2, stream.length, 4, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("grid", "block_size"), GRIDS_AND_BLOCKS)
@torch.no_grad()
def test_blocks_equal_the_reference(pattern, grid, block_size):
    stream = make_stream(grid=grid)
    tiling = window_tiling(pattern, stream, block_size)
    q, k, v = make_qkv(stream)
    out = window_attention(q, k, v, tiling)
    for sample in range(len(q)):
        expected = reference_attention(q[sample], k[sample], v[sample], tiling)
        torch.testing.assert_close(tiling.blocks(out[sample]), expected)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("grid", "block_size"), GRIDS_AND_BLOCKS)
def test_outputs_and_gradients_equal_those_with_the_dense_mask(pattern, grid, block_size):
    stream = make_stream(grid=grid)
    window_qkv, dense_qkv = make_qkv(stream), make_qkv(stream)
    windowed = window_attention(*window_qkv, window_tiling(pattern, stream, block_size))
    mask = dense_mask(pattern, stream)
    dense = F.scaled_dot_product_attention(*dense_qkv, attn_mask=mask)
    torch.testing.assert_close(windowed, dense)
    weights = torch.randn_like(dense)
    for out in (windowed, dense):
        (out * weights).sum().backward()
    torch.testing.assert_close(window_qkv.grad, dense_qkv.grad)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_bf16_is_close_to_fp32(pattern):
    stream = make_stream(grid=8)
    fp32 = make_qkv(stream).detach().bfloat16().float().requires_grad_()
    bf16 = fp32.detach().bfloat16().requires_grad_()
    tiling = window_tiling(pattern, stream, 16)
    outputs = [window_attention(*x, tiling) for x in (fp32, bf16)]
    weights = torch.randn_like(outputs[0])
    for out in outputs:
        (out * weights).float().sum().backward()
    assert outputs[1].dtype == torch.bfloat16
    torch.testing.assert_close(outputs[1].float(), outputs[0], rtol=0, atol=0.03)
    torch.testing.assert_close(bf16.grad.float(), fp32.grad, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_scores_are_saved_for_the_backward_pass(dtype):
    stream = make_stream(text_length=100, grid=16)
    tiling = window_tiling("row", stream)
    qkv = make_qkv(stream).detach().to(dtype).requires_grad_()
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()), lambda t: t):
        window_attention(*qkv, tiling)
    batch_and_heads = qkv.shape[1] * qkv.shape[2]
    assert max(sizes) < batch_and_heads * stream.image_length * tiling.text_length / 2


@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_output_depends_exactly_on_the_keys_that_the_mask_shows(pattern):
    stream = make_stream(grid=6)
    q, k, v = make_qkv(stream)
    tiling = window_tiling(pattern, stream, 6)
    before = window_attention(q, k, v, tiling)
    visible = dense_mask(pattern, stream)
    for key in range(stream.length):
        changed_kv = k.clone(), v.clone()
        for x in changed_kv:
            x[:, :, key] += 1
        change = (window_attention(q, *changed_kv, tiling) - before).abs().amax(dim=(0, 1, 3))
        assert torch.equal(change > 0, visible[:, key])
