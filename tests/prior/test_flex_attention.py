"""FlexAttention on a CPU, where it has no backward pass. test_cuda.py has the rest."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

from tilewright.prior import Stream
from tilewright.prior.attention import attend
from tilewright.prior.flex_attention import compiled_flex_attention, make_block_mask
from tilewright.prior.patterns import PATTERNS, dense_mask
from tilewright.training.compiling import RECOMPILE_LIMIT

STREAM = Stream(text_length=3, text_vocab=5, grid=4, image_vocab=5)


def test_flex_attention_compiled_alone_has_the_recompile_limit_of_a_compiled_network(monkeypatch):
    """Past torch's 8 shapes it would silently run in eager mode."""
    monkeypatch.setattr(torch.compiler.config, "recompile_limit", 8)
    compiled_flex_attention.cache_clear()
    compiled_flex_attention()
    assert torch.compiler.config.recompile_limit == RECOMPILE_LIMIT


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_flex_attention_with_the_block_mask_equals_attention_with_the_dense_mask(pattern):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, STREAM.length, 16)
    actual = flex_attention(q, k, v, block_mask=make_block_mask(pattern, STREAM, q.device))
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=dense_mask(pattern, STREAM))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_flex_attention_is_a_part_of_a_compiled_network_s_graph():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, STREAM.length, 16)
    mask = make_block_mask("row", STREAM, q.device)
    whole = torch.compile(lambda q: 2 * attend(q + 1, k, v, mask), backend="eager", fullgraph=True)
    expected = F.scaled_dot_product_attention(q + 1, k, v, attn_mask=dense_mask("row", STREAM))
    torch.testing.assert_close(whole(q), 2 * expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_block_mask_from_inference_mode_is_usable_in_training():
    assert not make_block_mask("row", STREAM, torch.device("cpu")).kv_indices.is_inference()
