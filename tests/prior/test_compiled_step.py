"""Compiled steps sample the same images as eager steps."""

import pytest
import torch

from tilewright.prior import Sampling, Stream, Transformer, sample
from tilewright.prior.compiled_step import CompiledSteps, compile_function
from tilewright.prior.patterns import PATTERNS, cache_slots

STREAM = Stream(text_length=4, text_vocab=9, grid=8, image_vocab=16)
MODERN = {"norm": "rms", "mlp": "swiglu", "positions": "rotary", "qk_norm": True}


def make_network(**parts):
    torch.manual_seed(0)
    network = Transformer(STREAM, dim=32, heads=4, **parts).eval()
    with torch.no_grad():  # larger weights, so that outputs depend on captions and earlier tokens
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("parts", [{}, MODERN], ids=["paper", "modern"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("captions", "candidates"), [(1, 1), (3, 1), (2, 3)])
def test_steps_with_tensor_indices_equal_steps_with_integers(pattern, parts, captions, candidates):
    network = make_network(depth=2, pattern=pattern, **parts)
    text = torch.randint(9, (captions, 4))
    with torch.inference_mode():
        _, eager = network.prefill(text, candidates)
        _, compiled = network.prefill(text, candidates, compiled_steps=True)
        for index in range(STREAM.image_length - 1):
            tokens = torch.randint(16, (captions * candidates,))
            expected = network.step(tokens, index, eager)
            actual = network.step(tokens, torch.tensor([index]), compiled)
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_read_table_has_the_reads_of_each_token(pattern):
    assignment = cache_slots(pattern, STREAM)
    slots, mask = assignment.read_table
    for token, read in enumerate(assignment.read):
        expected = torch.arange(assignment.count)[read]
        assert slots[token][mask[token]].tolist() == sorted(expected.tolist())
    assert slots.shape[1] <= assignment.count


def test_compiled_steps_pass_tokens_and_index_and_return_new_tensors():
    calls = []

    def step(tokens, index):
        calls.append((tokens.tolist(), index.tolist()))
        return tokens + 1

    steps = CompiledSteps(step, torch.zeros(2, dtype=torch.long))
    first = steps(torch.tensor([5, 6]), 3)
    second = steps(first, 4)
    assert (first.tolist(), second.tolist()) == ([6, 7], [7, 8])
    assert calls == [([5, 6], [3]), ([6, 7], [4])]


@pytest.mark.slow
def test_compiled_sampling_equals_eager_sampling_for_several_batch_sizes():
    network, text = make_network(depth=1, pattern="row", **MODERN), torch.randint(9, (2, 4))
    for candidates in (2, 3):
        expected = sample(network, text, candidates, sampling=Sampling(guidance=2.0))
        compiled = Sampling(guidance=2.0, compile=True)
        assert torch.equal(sample(network, text, candidates, sampling=compiled), expected)


@pytest.mark.slow
def test_more_than_eight_batch_sizes_are_compiled():
    step = compile_function(lambda tokens, _: tokens + torch.compiler.is_compiling(), "cpu")
    for batch_size in range(1, 10):
        tokens = torch.zeros(batch_size, dtype=torch.long)
        steps = CompiledSteps(step, tokens)
        for index in range(3):
            tokens = steps(tokens, index)
        assert tokens.tolist() == [3] * batch_size
