"""Attention follows its mask, both over whole sequences and one position at a time."""

import pytest
import torch

from tilewright.prior import Stream, attention, flex_attention
from tilewright.prior.attention import SelfAttention, attend, attention_mask
from tilewright.prior.kv_cache import EagerLayerCache
from tilewright.prior.patterns import PATTERNS, cache_slots, dense_mask

STREAM = Stream(text_length=3, text_vocab=5, grid=4, image_vocab=5)


def self_attention(pattern):
    torch.manual_seed(0)
    return SelfAttention(8, 2, pattern, STREAM).double()


@pytest.fixture
def fresh_masks():
    """Clears the cached masks before and after a test that changes MIN_LENGTH_FOR_WINDOWS."""
    attention_mask.cache_clear()
    yield
    attention_mask.cache_clear()


def attend_with_pattern(q, k, v, pattern, stream=STREAM):
    return attend(q, k, v, attention_mask(pattern, stream, q.device, q.dtype))


@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_output_depends_exactly_on_the_inputs_that_the_mask_shows(pattern):
    layer, length = self_attention(pattern), STREAM.length
    x = torch.randn(1, length, 8, dtype=torch.float64).expand(length, -1, -1).clone()
    mask = attention_mask(pattern, STREAM, x.device, x.dtype)
    before = layer(x, mask)
    x[range(length), range(length)] += torch.randn(length, 8, dtype=torch.float64)
    change = (layer(x, mask) - before).abs().amax(dim=-1)  # [changed key, query]
    visible = dense_mask(pattern, STREAM).T
    assert (change[~visible] < 1e-12).all()
    assert (change[visible] > 1e-7).all()


@pytest.mark.parametrize("min_length", [0, 999], ids=["windows", "dense mask"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.usefixtures("fresh_masks")
@torch.no_grad()
def test_attention_is_one_softmax_over_the_visible_keys(pattern, min_length, monkeypatch):
    monkeypatch.setattr(attention, "MIN_LENGTH_FOR_WINDOWS", min_length)
    stream = Stream(text_length=3, text_vocab=5, grid=12, image_vocab=5)
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, stream.length, 4, dtype=torch.float64)
    scores = (q @ k.transpose(-1, -2)) / 2
    scores = scores.masked_fill(~dense_mask(pattern, stream), -torch.inf)
    torch.testing.assert_close(
        attend_with_pattern(q, k, v, pattern, stream), scores.softmax(-1) @ v
    )


@pytest.mark.usefixtures("fresh_masks")
@torch.no_grad()
def test_size_of_a_graph_with_windows_does_not_depend_on_the_batch_size(monkeypatch):
    monkeypatch.setattr(attention, "MIN_LENGTH_FOR_WINDOWS", 0)
    stream = Stream(text_length=3, text_vocab=5, grid=12, image_vocab=5)
    sizes = []
    for batch_size in (2, 6):
        num_nodes = []
        torch._dynamo.reset()

        def count_nodes(graph, _, num_nodes=num_nodes):
            num_nodes.append(len(graph.graph.nodes))
            return graph.forward

        q = torch.randn(batch_size, 2, stream.length, 4)
        mask = attention_mask("row", stream, q.device, q.dtype)
        torch.compile(lambda x, mask=mask: attend(x + 1, x, x, mask) * 2, backend=count_nodes)(q)
        sizes.append(num_nodes)
    assert sizes[0]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_bf16_attention_by_products_is_close_to_fp32(pattern):
    torch.manual_seed(0)
    fp32 = torch.randn(3, 2, 2, STREAM.length, 4).bfloat16().float().requires_grad_()
    bf16 = fp32.detach().bfloat16().requires_grad_()
    weights = torch.randn(2, 2, STREAM.length, 4)
    outputs = [attend_with_pattern(*x, pattern) for x in (fp32, bf16)]
    for out in outputs:
        (out.float() * weights).sum().backward()
    assert outputs[1].dtype == torch.bfloat16
    torch.testing.assert_close(outputs[1].float(), outputs[0], rtol=0, atol=0.03)
    torch.testing.assert_close(bf16.grad.float(), fp32.grad, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_cached_steps_equal_attention_over_the_whole_sequence(pattern):
    layer, candidates, first = self_attention(pattern), 3, STREAM.first_image_position
    text = torch.randn(2, first, 8, dtype=torch.float64)
    image = torch.randn(2 * candidates, STREAM.length - first, 8, dtype=torch.float64)
    x = torch.cat([text.repeat_interleave(candidates, dim=0), image], dim=1)
    expected = layer(x, attention_mask(pattern, STREAM, x.device, x.dtype))
    prefix, k, v = layer.prefill(text)
    cache = EagerLayerCache(k, v, candidates, cache_slots(pattern, STREAM))
    torch.testing.assert_close(prefix.repeat_interleave(candidates, dim=0), expected[:, :first])
    for index in range(image.shape[1]):
        actual = layer.step(image[:, index], index, cache)
        # the cache's softmax is in fp32
        torch.testing.assert_close(actual, expected[:, first + index], rtol=1e-5, atol=1e-5)


def test_width_that_is_not_a_multiple_of_heads_is_rejected():
    with pytest.raises(ValueError, match="dim=10 is not a multiple of heads=4"):
        SelfAttention(10, 4, "row", STREAM)


@pytest.mark.parametrize(("capability", "has_blocks"), [((7, 5), False), ((8, 0), True)])
def test_older_gpus_get_a_dense_mask(capability, has_blocks, monkeypatch, fresh_masks):
    class OnDevice:
        def to(self, device):
            return f"dense mask on {device}"

    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    monkeypatch.setattr(flex_attention, "make_block_mask", lambda *_: "block mask")
    monkeypatch.setattr(attention, "dense_mask", lambda *_: OnDevice())
    mask = attention_mask("row", STREAM, torch.device("cuda"), torch.float16)
    assert mask == ("block mask" if has_blocks else "dense mask on cuda")
