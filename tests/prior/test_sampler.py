"""Sampling: shapes, seeds, distributions, image prompts, and the number of network calls."""

import copy
import math
import re

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from tilewright.checks import format_value
from tilewright.errors import UserError
from tilewright.prior import Sampling, Stream, Transformer, sample, sample_rows
from tilewright.prior.patterns import cache_slots
from tilewright.prior.sampler import candidate_noise, sample_from_logits

STREAM = Stream(text_length=3, text_vocab=5, grid=3, image_vocab=8)
TEXT = torch.tensor([[1, 2, -1], [4, 0, 3], [2, -1, -1]])
GREEDY = [
    Sampling(temperature=0),
    Sampling(temperature=1e-40),
    Sampling(temperature=1e-7),
    Sampling(top_k=1),
    Sampling(top_p=1e-9),
]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = Transformer(STREAM, dim=16, depth=3, heads=2).eval()
    with torch.no_grad():  # larger weights, so that outputs depend on captions and earlier tokens
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def random_rows(count):
    return torch.randint(8, (3, count, 3), generator=torch.Generator().manual_seed(5))


def test_shape_and_range_of_sampled_tokens(network):
    tokens = sample(network, TEXT, 4)
    assert (tokens.shape, tokens.dtype) == ((3, 4, 3, 3), torch.int64)
    assert tokens.min() >= 0
    assert tokens.max() < 8
    assert len({tuple(t.flatten().tolist()) for t in tokens.flatten(0, 1)}) > 6


def test_seed_determines_the_images(network):
    assert torch.equal(sample(network, TEXT, 2, seed=1), sample(network, TEXT, 2, seed=1))
    assert not torch.equal(sample(network, TEXT, 2, seed=1), sample(network, TEXT, 2, seed=2))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_candidate_does_not_depend_on_the_number_of_candidates(network, guidance):
    sampling = Sampling(guidance=guidance)
    many = sample(network, TEXT, 5, sampling=sampling)
    assert torch.equal(sample(network, TEXT, 2, sampling=sampling), many[:, :2])


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_captions_and_candidates_can_be_split_between_calls(network, guidance):
    sampling = Sampling(guidance=guidance)
    expected = sample(network, TEXT, 2, sampling=sampling)
    actual = torch.empty_like(expected)
    for i in range(3):
        for j in range(2):
            offsets = {"caption_offset": i, "candidate_offset": j}
            actual[i, j] = sample(network, TEXT[i : i + 1], 1, sampling=sampling, **offsets)[0, 0]
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("num_prompt_rows", [0, 1, 3])
def test_rows_are_yielded_one_by_one(network, num_prompt_rows):
    prompt = random_rows(num_prompt_rows)
    expected = sample(network, TEXT, 2, image_prompt_tokens=prompt)
    steps = list(sample_rows(network, TEXT, 2, image_prompt_tokens=prompt))
    assert len(steps) == 3
    for num_rows, tokens in enumerate(steps, start=1):
        assert torch.equal(tokens, expected[:, :, :num_rows])


def test_row_is_yielded_before_the_next_row_is_computed(network, monkeypatch):
    indices, step = [], network.step

    def recorded_step(tokens, index, caches):
        indices.append(index)
        return step(tokens, index, caches)

    monkeypatch.setattr(network, "step", recorded_step)
    for num_rows, _ in enumerate(sample_rows(network, TEXT), start=1):
        assert len(indices) == 3 * num_rows - 1


def test_noise_differs_between_captions_candidates_and_seeds():
    noise = torch.cat([candidate_noise(range(4), range(3), 16, seed) for seed in (0, 1)])
    assert len(noise.unique(dim=0)) == 2 * 4 * 3
    assert noise.min() >= 0
    assert noise.max() < 1


def greedy_tokens(network):
    """Returns the most likely token at each position, from forward passes over the whole stream."""
    image = torch.zeros(3, 9, dtype=torch.long)
    with torch.no_grad():
        for index in range(9):
            logits = network(TEXT, image.view(3, 3, 3))[1]
            image[:, index] = logits[:, index].argmax(dim=-1)
    return image.view(3, 1, 3, 3)


@pytest.mark.parametrize("compiled_steps", [False, True])
@pytest.mark.parametrize("candidates", [1, 4])
def test_caches_hold_the_text_once_and_the_slots_of_each_pattern(
    network, candidates, compiled_steps
):
    _, caches = network.prefill(TEXT, candidates, compiled_steps)
    for block, cache in zip(network.blocks, caches, strict=True):
        num_slots = cache_slots(block.attention.pattern, STREAM).count
        assert cache.nbytes == 3 * (4 + candidates * num_slots) * 2 * 16 * 4
        # A compiled step would copy tensors that share memory with a tensor that it writes.
        tensors = [value for value in vars(cache).values() if isinstance(value, torch.Tensor)]
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)


@pytest.mark.parametrize("sampling", GREEDY, ids=str)
def test_greedy_settings_take_the_most_likely_token(network, sampling):
    tokens = sample(network, TEXT, 2, sampling=sampling)
    assert torch.equal(tokens, greedy_tokens(network).expand(3, 2, 3, 3))


@pytest.mark.parametrize("sampling", GREEDY, ids=str)
def test_greedy_settings_take_the_first_of_the_largest_logits(sampling):
    larger = torch.tensor(10.0).nextafter(torch.tensor(11.0))  # equal to 10 after a softmax
    logits = torch.zeros(2, 64)
    logits[0, 20], logits[0, 40] = 10.0, larger
    logits[1, [20, 40]] = 10.0
    for noise in (0.0, 0.3, 1 - 2**-24):
        tokens = sample_from_logits(logits, torch.full((2,), noise), sampling)
        assert tokens.tolist() == [40, 20]


@settings(deadline=None)
@given(
    logits=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=9),
    noise=st.floats(0, 1, exclude_max=True, width=32),
    temperature=st.floats(1e-6, 1e6),
    top_k=st.none() | st.integers(1, 12),
    top_p=st.none() | st.floats(1e-9, 1),
)
def test_any_settings_sample_one_of_the_most_likely_tokens(
    logits, noise, temperature, top_k, top_p
):
    logits, noise = torch.tensor([logits]), torch.tensor([noise])
    greedy = {int(sample_from_logits(logits, noise, sampling)) for sampling in GREEDY}
    assert greedy == {int(logits.argmax())}
    sampling = Sampling(temperature, top_k, top_p)
    token = int(sample_from_logits(logits, noise, sampling))
    assert (logits[0] > logits[0, token]).sum() < (top_k or logits.shape[1])


def frequencies(logits, sampling, points=20_000):
    uniform = (torch.arange(points) + 0.5) / points
    tokens = sample_from_logits(logits.expand(points, -1), uniform, sampling)
    return torch.bincount(tokens, minlength=logits.shape[-1]) / points


LOGITS = torch.tensor([[0.3, -1.0, 2.0, 0.0, -8.0, 1.5]])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_token_frequencies_follow_the_softmax(temperature):
    expected = (LOGITS[0] / temperature).softmax(0)
    actual = frequencies(LOGITS, Sampling(temperature=temperature))
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4)


def renormalized(*kept):
    weights = torch.zeros(6)
    weights[list(kept)] = LOGITS[0, list(kept)].exp()
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(top_k=3), renormalized(2, 5, 0)),
        (Sampling(top_k=100), renormalized(*range(6))),
        # The softmax is 0.51 0.31 0.09 0.07 ...: the first two sum to 0.81.
        (Sampling(top_p=0.45), renormalized(2)),
        (Sampling(top_p=0.7), renormalized(2, 5)),
        (Sampling(top_p=0.85), renormalized(2, 5, 0)),
        (Sampling(top_p=1.0), renormalized(*range(6))),
        (Sampling(top_k=2, top_p=0.95), renormalized(2, 5)),
        (Sampling(top_k=3, top_p=0.85), renormalized(2, 5)),  # 0.56 0.34 0.10 among three tokens
    ],
)
def test_top_k_and_top_p_renormalize_the_kept_tokens(sampling, expected):
    actual = frequencies(LOGITS, sampling)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4)
    assert not actual[expected == 0].any()


def test_ends_of_the_noise_range_sample_kept_tokens():
    ends = torch.tensor([0.0, 1 - 2**-24])
    for sampling in (Sampling(top_k=2), Sampling(top_p=0.7)):
        assert sample_from_logits(LOGITS.expand(2, -1), ends, sampling).tolist() == [2, 5]
    impossible = torch.tensor([-torch.inf, 0.3, 1.0, 0.1, -torch.inf])
    assert sample_from_logits(impossible.expand(2, -1), ends, Sampling()).tolist() == [1, 3]


def test_image_prompt_is_kept_and_continued(network):
    prompt = random_rows(2)
    tokens = sample(network, TEXT, 2, image_prompt_tokens=prompt)
    assert torch.equal(tokens[:, :, :2], prompt[:, None].expand(3, 2, 2, 3))
    # An image continues as before if the prompt is its own beginning.
    free = sample(network, TEXT, 1)
    again = sample(network, TEXT, 1, image_prompt_tokens=free[:, 0, :1])
    assert torch.equal(again, free)
    complete = sample(network, TEXT, 1, image_prompt_tokens=free[:, 0])
    assert torch.equal(complete, free)


def test_guidance_of_one_is_no_guidance_and_zero_ignores_the_caption(network):
    unguided = sample(network, TEXT, 2)
    nearly = sample(network, TEXT, 2, sampling=Sampling(guidance=1 + 1e-6))
    assert torch.equal(nearly, unguided)
    assert torch.equal(sample(network, TEXT, 2, sampling=Sampling(guidance=1.0)), unguided)
    empty = sample(network, STREAM.without_caption(TEXT), 2)
    assert torch.equal(sample(network, TEXT, 2, sampling=Sampling(guidance=0.0)), empty)
    assert not torch.equal(empty, unguided)


@pytest.mark.parametrize(("guidance", "captions"), [(1.0, 3), (3.0, 6)])
@pytest.mark.parametrize("num_prompt_rows", [0, 1])
def test_each_position_is_computed_once(network, monkeypatch, guidance, captions, num_prompt_rows):
    prefills, steps = [], []
    prefill, step = network.prefill, network.step

    def counted_prefill(text, candidates):
        prefills.append((len(text), candidates))
        return prefill(text, candidates)

    def counted_step(tokens, index, caches):
        steps.append((len(tokens), index))
        return step(tokens, index, caches)

    monkeypatch.setattr(network, "prefill", counted_prefill)
    monkeypatch.setattr(network, "step", counted_step)
    monkeypatch.setattr(network, "forward", None)
    prompt = torch.zeros(3, num_prompt_rows, 3, dtype=torch.long)
    sample(network, TEXT, 2, sampling=Sampling(guidance=guidance), image_prompt_tokens=prompt)
    assert prefills == [(captions, 2)]
    assert steps == [(2 * captions, index) for index in range(8)]


IMPOSSIBLE = {
    "temperature": ([-0.1, math.nan, math.inf, True, "hot", [1]], "a number of 0 or more"),
    "guidance": ([-1, math.nan, math.inf, -math.inf, 1e38, False, "x"], "a number from 0 to 1000"),
    "top_k": ([0, -1, 1.5, math.nan, math.inf, True], "a whole number of 1 or more"),
    "top_p": ([0, 0.0, -0.1, 1.1, math.nan, True], "a number above 0 and at most 1"),
    "weights": (["int4", 8], "one of float32, bfloat16, int8"),
    "compile": (["auto", 1], "true or false"),
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, (values, _) in IMPOSSIBLE.items() for value in values]
)
def test_settings_out_of_range_are_rejected(key, value):
    _, possible = IMPOSSIBLE[key]
    message = f"{key}={format_value(value)} is not possible: set {possible}"
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        Sampling(**{key: value})


@pytest.mark.parametrize("seed", [-1, 1.5, 2**32, 99999999999999999999, math.nan, True, "a"])
def test_seed_out_of_range_is_rejected(network, seed):
    message = f"seed={format_value(seed)} is not possible: set a whole number from 0 to 4294967295"
    with pytest.raises(UserError, match=f"^{message}$"):
        sample(network, TEXT, seed=seed)


def test_nan_logits_are_reported(network, caplog):
    sample(network, TEXT)
    assert not caplog.text
    diverged = copy.deepcopy(network)
    torch.nn.init.constant_(diverged.image_head.weight, torch.nan)
    sample(diverged, TEXT)
    assert "logits are nan" in caplog.text


@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("top_p", [None, 0.9])
def test_nan_logits_sample_a_valid_token(top_k, top_p):
    logits, noise = torch.full((2, 6), torch.nan), torch.tensor([0.1, 0.9])
    tokens = sample_from_logits(logits, noise, Sampling(top_k=top_k, top_p=top_p))
    assert all(0 <= token < 6 for token in tokens.tolist())


@pytest.mark.parametrize("shape", [(3, 4, 3), (3, 1, 2), (2, 1, 3)])
def test_image_prompt_that_does_not_fit_is_rejected(network, shape):
    with pytest.raises(ValueError, match="image_prompt_tokens must be"):
        sample(network, TEXT, image_prompt_tokens=torch.zeros(shape, dtype=torch.long))
