"""Steps that are the same for every position draw what those of each position draw."""

import pytest
import torch

from tilewright.prior import Sampling, Stream, Transformer, sample
from tilewright.prior.compiled_step import CompiledSteps, compiled
from tilewright.prior.patterns import PATTERNS, cache_plan

STREAM = Stream(text_length=4, text_vocab=9, grid=8, image_vocab=16)
MODERN = {"norm": "rms", "mlp": "swiglu", "positions": "rotary", "qk_norm": True}


def network(**parts):
    torch.manual_seed(0)
    network = Transformer(STREAM, dim=32, heads=4, **parts).eval()
    with torch.no_grad():  # as at 0.02 captions and earlier tokens hardly matter
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("parts", [{}, MODERN], ids=["paper", "modern"])
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("captions", "candidates"), [(1, 1), (3, 1), (2, 3)])
def test_a_number_in_a_tensor_is_the_number(pattern, parts, captions, candidates):
    prior = network(depth=2, pattern=pattern, **parts)
    text = torch.randint(9, (captions, 4))
    with torch.inference_mode():
        _, caches = prior.prefill(text, candidates)
        _, others = prior.prefill(text, candidates)
        for number in range(STREAM.image_length - 1):
            tokens = torch.randint(16, (captions * candidates,))
            expected = prior.step(tokens, number, caches)
            found = prior.step(tokens, torch.tensor([number]), others)
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_table_has_the_reads_of_the_plan(pattern):
    plan = cache_plan(pattern, STREAM)
    slots, seen = plan.table
    for token, read in enumerate(plan.read):
        expected = torch.arange(plan.slots)[read]
        assert slots[token][seen[token]].tolist() == sorted(expected.tolist())
    assert slots.shape[1] <= plan.slots


def test_a_step_gets_its_tokens_and_its_number():
    seen = []

    def step(tokens, number):
        seen.append((tokens.tolist(), number.tolist()))
        return tokens + 1

    steps = CompiledSteps(step, torch.zeros(2, dtype=torch.long))
    first = steps(torch.tensor([5, 6]), 3)
    second = steps(first, 4)
    assert (first.tolist(), second.tolist()) == ([6, 7], [7, 8])  # the first is left as it was
    assert seen == [([5, 6], [3]), ([6, 7], [4])]


@pytest.mark.slow
def test_compiled_steps_draw_the_same_pictures_however_many():
    prior, text = network(depth=1, pattern="row", **MODERN), torch.randint(9, (2, 4))
    for candidates in (2, 3):
        expected = sample(prior, text, candidates, sampling=Sampling(guidance=2.0))
        compiled = Sampling(guidance=2.0, compile=True)
        assert torch.equal(sample(prior, text, candidates, sampling=compiled), expected)


@pytest.mark.slow
def test_the_ninth_number_of_pictures_is_compiled_as_the_first_is():
    step = compiled(lambda tokens, _: tokens + torch.compiler.is_compiling(), "cpu")
    for pictures in range(1, 10):
        tokens = torch.zeros(pictures, dtype=torch.long)
        steps = CompiledSteps(step, tokens)
        for number in range(3):
            tokens = steps(tokens, number)
        assert tokens.tolist() == [3] * pictures
