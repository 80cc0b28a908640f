"""Sampling: which pictures come out, what decides it, and how often each position is computed."""

import pytest
import torch

from tilewright.prior import Sampling, Stream, Transformer, sample, sample_rows
from tilewright.prior.patterns import cache_plan
from tilewright.prior.sampler import candidate_noise, draw

STREAM = Stream(text_length=3, text_vocab=5, grid=3, image_vocab=8)
TEXT = torch.tensor([[1, 2, -1], [4, 0, 3], [2, -1, -1]])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = Transformer(STREAM, dim=16, depth=3, heads=2).eval()
    with torch.no_grad():  # as at 0.02 captions and earlier tokens hardly matter
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


def test_the_shape_and_range(network):
    tokens = sample(network, TEXT, 4)
    assert (tokens.shape, tokens.dtype) == ((3, 4, 3, 3), torch.int64)
    assert tokens.min() >= 0
    assert tokens.max() < 8
    assert len({tuple(t.flatten().tolist()) for t in tokens.flatten(0, 1)}) > 6


def test_the_seed_decides(network):
    assert torch.equal(sample(network, TEXT, 2, seed=1), sample(network, TEXT, 2, seed=1))
    assert not torch.equal(sample(network, TEXT, 2, seed=1), sample(network, TEXT, 2, seed=2))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_candidate_is_the_same_however_many_are_drawn(network, guidance):
    sampling = Sampling(guidance=guidance)
    many = sample(network, TEXT, 5, sampling=sampling)
    assert torch.equal(sample(network, TEXT, 2, sampling=sampling), many[:, :2])


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_captions_may_be_split_between_calls(network, guidance):
    sampling = Sampling(guidance=guidance)
    whole = sample(network, TEXT, 2, sampling=sampling)
    parts = [sample(network, TEXT[i : i + 1], 2, sampling=sampling, first=i) for i in range(3)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("given", [0, 1, 3])
def test_rows_come_as_they_are_drawn(network, given):
    rows = torch.randint(8, (3, given, 3), generator=torch.Generator().manual_seed(5))
    whole = sample(network, TEXT, 2, first_rows=rows)
    drawn = list(sample_rows(network, TEXT, 2, first_rows=rows))
    assert len(drawn) == 3
    for number, tokens in enumerate(drawn, start=1):
        assert torch.equal(tokens, whole[:, :, :number])


def test_a_row_is_given_before_the_next_is_computed(network, monkeypatch):
    steps, step = [], network.step
    monkeypatch.setattr(network, "step", lambda *of: (steps.append(of[1]), step(*of))[1])
    for number, _ in enumerate(sample_rows(network, TEXT), start=1):
        assert len(steps) == 3 * number - 1


def test_noise_differs_between_captions_candidates_and_seeds():
    noise = torch.cat([candidate_noise(range(4), range(3), 16, seed) for seed in (0, 1)])
    assert len(noise.unique(dim=0)) == 2 * 4 * 3
    assert noise.min() >= 0
    assert noise.max() < 1


def greedy(network):
    """The likeliest token at every position, by whole forwards."""
    image = torch.zeros(3, 9, dtype=torch.long)
    with torch.no_grad():
        for number in range(9):
            logits = network(TEXT, image.view(3, 3, 3))[1]
            image[:, number] = logits[:, number].argmax(dim=-1)
    return image.view(3, 1, 3, 3)


@pytest.mark.parametrize("candidates", [1, 4])
def test_the_caches_hold_the_caption_once_and_what_each_layer_sees(network, candidates):
    _, caches = network.prefill(TEXT, candidates)
    for block, cache in zip(network.blocks, caches, strict=True):
        slots = cache_plan(block.attention.pattern, STREAM).slots
        assert cache.nbytes == 3 * (4 + candidates * slots) * 2 * 16 * 4
        # Of a tensor that shares memory with one that is written a compiled step makes copies.
        tensors = [value for value in vars(cache).values() if isinstance(value, torch.Tensor)]
        assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == len(tensors)


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=0), Sampling(top_k=1), Sampling(top_p=1e-6), Sampling(temperature=1e-4)],
    ids=["temperature 0", "top_k 1", "top_p tiny", "temperature tiny"],
)
def test_the_greedy_settings_take_the_likeliest_token(network, sampling):
    tokens = sample(network, TEXT, 2, sampling=sampling)
    assert torch.equal(tokens, greedy(network).expand(3, 2, 3, 3))


def frequencies(logits, sampling, points=20_000):
    uniform = (torch.arange(points) + 0.5) / points
    drawn = draw(logits.expand(points, -1), uniform, sampling)
    return torch.bincount(drawn, minlength=logits.shape[-1]) / points


LOGITS = torch.tensor([[0.3, -1.0, 2.0, 0.0, -8.0, 1.5]])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_the_softmax_says(temperature):
    expected = (LOGITS[0] / temperature).softmax(0)
    actual = frequencies(LOGITS, Sampling(temperature=temperature))
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4)


def only(*kept):
    weights = torch.zeros(6)
    weights[list(kept)] = LOGITS[0, list(kept)].exp()
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(top_k=3), only(2, 5, 0)),
        (Sampling(top_k=100), only(*range(6))),
        # the softmax is 0.51 0.31 0.09 0.07 ...: the first two hold 0.81
        (Sampling(top_p=0.45), only(2)),
        (Sampling(top_p=0.7), only(2, 5)),
        (Sampling(top_p=0.85), only(2, 5, 0)),
        (Sampling(top_p=1.0), only(*range(6))),
        (Sampling(top_k=2, top_p=0.95), only(2, 5)),
    ],
)
def test_what_is_cut_is_never_drawn_and_the_rest_keeps_its_proportions(sampling, expected):
    actual = frequencies(LOGITS, sampling)
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-4)
    assert not actual[expected == 0].any()


def test_the_ends_of_the_uniform_range_draw_tokens_that_are_kept():
    ends = torch.tensor([0.0, 1 - 2**-24])
    for sampling in (Sampling(top_k=2), Sampling(top_p=0.7)):
        drawn = draw(LOGITS.expand(2, -1), ends, sampling)
        assert drawn.tolist() == [2, 5]
    impossible = torch.tensor([-torch.inf, 0.3, 1.0, 0.1, -torch.inf])
    assert draw(impossible.expand(2, -1), ends, Sampling()).tolist() == [1, 3]


def test_the_rows_that_are_given_are_kept_and_the_rest_is_drawn_under_them(network):
    rows = torch.randint(8, (3, 2, 3), generator=torch.Generator().manual_seed(5))
    tokens = sample(network, TEXT, 2, first_rows=rows)
    assert torch.equal(tokens[:, :, :2], rows[:, None].expand(3, 2, 2, 3))
    # Under its own beginning a picture comes out as it did without.
    free = sample(network, TEXT, 1)
    again = sample(network, TEXT, 1, first_rows=free[:, 0, :1])
    assert torch.equal(again, free)
    whole = sample(network, TEXT, 1, first_rows=free[:, 0])
    assert torch.equal(whole, free)


def test_guidance_of_one_is_none_and_of_zero_is_an_empty_caption(network):
    none = sample(network, TEXT, 2)
    nearly = sample(network, TEXT, 2, sampling=Sampling(guidance=1 + 1e-6))
    assert torch.equal(nearly, none)
    assert torch.equal(sample(network, TEXT, 2, sampling=Sampling(guidance=1.0)), none)
    emptied = sample(network, STREAM.empty_captions(3), 2)
    assert torch.equal(sample(network, TEXT, 2, sampling=Sampling(guidance=0.0)), emptied)
    assert not torch.equal(emptied, none)


@pytest.mark.parametrize(("guidance", "captions"), [(1.0, 3), (3.0, 6)])
@pytest.mark.parametrize("given", [0, 1])
def test_each_position_is_computed_once(network, monkeypatch, guidance, captions, given):
    prefills, steps = [], []
    prefill, step = network.prefill, network.step

    def counted_prefill(text, candidates):
        prefills.append((len(text), candidates))
        return prefill(text, candidates)

    def counted_step(tokens, number, caches):
        steps.append((len(tokens), number))
        return step(tokens, number, caches)

    monkeypatch.setattr(network, "prefill", counted_prefill)
    monkeypatch.setattr(network, "step", counted_step)
    monkeypatch.setattr(network, "forward", None)
    rows = torch.zeros(3, given, 3, dtype=torch.long)
    sample(network, TEXT, 2, sampling=Sampling(guidance=guidance), first_rows=rows)
    assert prefills == [(captions, 2)]
    assert steps == [(2 * captions, number) for number in range(8)]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"temperature": -0.1}, "temperature .* -0.1"),
        ({"top_k": 0}, "top_k .* 0"),
        ({"top_p": 0.0}, "top_p .* 0"),
        ({"top_p": 1.1}, r"top_p .* 1\.1"),
        ({"weights": "int4"}, "weights .* int4"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, named):
    with pytest.raises(ValueError, match=named):
        Sampling(**settings)


@pytest.mark.parametrize("shape", [(3, 4, 3), (3, 1, 2), (2, 1, 3)])
def test_first_rows_that_do_not_fit_are_refused(network, shape):
    with pytest.raises(ValueError, match="first_rows must be"):
        sample(network, TEXT, first_rows=torch.zeros(shape, dtype=torch.long))
