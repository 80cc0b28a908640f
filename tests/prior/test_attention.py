"""Attention sees what its mask shows and nothing else, whole or one position at a time."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from tilewright.prior import Stream, attention
from tilewright.prior.attention import SelfAttention, _block_mask, attend, mask_on
from tilewright.prior.patterns import PATTERNS, dense_mask

STREAM = Stream(text_length=3, text_vocab=5, grid=4, image_vocab=5)


def layer(pattern):
    torch.manual_seed(0)
    return SelfAttention(8, 2, pattern, STREAM).double()


@pytest.fixture
def fresh_masks():
    """Masks are kept; those of a test that moves `FEW` are its own."""
    mask_on.cache_clear()
    yield
    mask_on.cache_clear()


def attended_by(q, k, v, pattern, stream=STREAM):
    return attend(q, k, v, mask_on(pattern, stream, q.device, q.dtype))


@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_an_output_changes_with_the_inputs_of_its_mask_and_no_other(pattern):
    attended, length = layer(pattern), STREAM.length
    x = torch.randn(1, length, 8, dtype=torch.float64).expand(length, -1, -1).clone()
    mask = mask_on(pattern, STREAM, x.device, x.dtype)
    before = attended(x, mask)
    x[range(length), range(length)] += torch.randn(length, 8, dtype=torch.float64)
    change = (attended(x, mask) - before).abs().amax(dim=-1)  # [changed key, query]
    visible = dense_mask(pattern, STREAM).T
    assert (change[~visible] < 1e-12).all()
    assert (change[visible] > 1e-7).all()


@pytest.mark.parametrize("few", [0, 999])  # through windows, through the dense mask
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.usefixtures("fresh_masks")
@torch.no_grad()
def test_it_is_one_softmax_over_the_visible_keys(pattern, few, monkeypatch):
    monkeypatch.setattr(attention, "FEW", few)
    stream = Stream(text_length=3, text_vocab=5, grid=12, image_vocab=5)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, stream.length, 4, dtype=torch.float64)
    scores = (q @ k.transpose(-1, -2)) / 2
    scores = scores.masked_fill(~dense_mask(pattern, stream), -torch.inf)
    torch.testing.assert_close(attended_by(q, k, v, pattern, stream), scores.softmax(-1) @ v)


@pytest.mark.usefixtures("fresh_masks")
@torch.no_grad()
def test_windows_make_no_graph_longer_with_the_batch(monkeypatch):
    monkeypatch.setattr(attention, "FEW", 0)
    stream = Stream(text_length=3, text_vocab=5, grid=12, image_vocab=5)
    sizes = []
    for batch in (2, 6):
        seen = []
        torch._dynamo.reset()

        def count(graph, _, seen=seen):
            seen.append(len(graph.graph.nodes))
            return graph.forward

        q = torch.randn(batch, 2, stream.length, 4)
        plan = mask_on("row", stream, q.device, q.dtype)
        torch.compile(lambda x, plan=plan: attend(x + 1, x, x, plan) * 2, backend=count)(q)
        sizes.append(seen)
    assert sizes[0]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_short_attention_in_bf16_is_that_of_fp32_but_for_its_digits(pattern):
    torch.manual_seed(0)
    exact = torch.randn(3, 2, 2, STREAM.length, 4).bfloat16().float().requires_grad_()
    short = exact.detach().bfloat16().requires_grad_()
    weights = torch.randn(2, 2, STREAM.length, 4)
    outputs = [attended_by(*x, pattern) for x in (exact, short)]
    for out in outputs:
        (out.float() * weights).sum().backward()
    assert outputs[1].dtype == torch.bfloat16
    torch.testing.assert_close(outputs[1].float(), outputs[0], rtol=0, atol=0.03)
    torch.testing.assert_close(short.grad.float(), exact.grad, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_steps_through_the_cache_equal_the_whole_sequence(pattern):
    attended, candidates, first = layer(pattern), 3, STREAM.first_image_position
    text = torch.randn(2, first, 8, dtype=torch.float64)
    image = torch.randn(2 * candidates, STREAM.length - first, 8, dtype=torch.float64)
    x = torch.cat([text.repeat_interleave(candidates, dim=0), image], dim=1)
    whole = attended(x, mask_on(pattern, STREAM, x.device, x.dtype))
    prefix, cache = attended.prefill(text, candidates)
    torch.testing.assert_close(prefix.repeat_interleave(candidates, dim=0), whole[:, :first])
    for token in range(image.shape[1]):
        step = attended.step(image[:, token], token, cache)
        # the cache's softmax is in fp32
        torch.testing.assert_close(step, whole[:, first + token], rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_flex_attentions_mask_is_the_dense_one(pattern):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, STREAM.length, 16)
    flexed = flex_attention(q, k, v, block_mask=_block_mask(pattern, STREAM, q.device))
    torch.testing.assert_close(flexed, attended_by(q, k, v, pattern), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_block_mask_made_in_inference_can_be_trained_with():
    assert not _block_mask("row", STREAM, torch.device("cpu")).kv_indices.is_inference()


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="got 10 and 4"):
        SelfAttention(10, 4, "row", STREAM)
