"""Transformer: causality, cached steps, compilation, initialization, and size."""

import pytest
import torch

from tilewright.errors import UserError
from tilewright.prior import CaptionStream, PlainStream, Sampling, Stream, Transformer, sample
from tilewright.prior.patterns import PATTERNS, dense_mask
from tilewright.training.compiling import should_compile

STREAM = Stream(text_length=3, text_vocab=5, grid=4, image_vocab=6)
MODERN = {"norm": "rms", "mlp": "swiglu", "positions": "rotary", "qk_norm": True}


def make_network(pattern="paper", depth=3, stream=STREAM, **parts):
    torch.manual_seed(0)
    network = Transformer(stream, dim=16, depth=depth, heads=2, pattern=pattern, **parts).eval()
    with torch.no_grad():  # larger weights, so that logits are not nearly zero
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def make_batch(size=1):
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(5, (size, 3), generator=generator)
    text[:, 2] = -1
    return text, torch.randint(6, (size, 4, 4), generator=generator)


def prediction_changes(network):
    """Returns the largest change [L + 1, L] of each prediction (column) per changed input (row).

    Row 0 is the start token, which never changes. The last row is the last image token.
    """
    text, image = make_batch()
    before = torch.cat([x.flatten(1) for x in network(text, image)], dim=1)
    rows = [torch.zeros(STREAM.length)]
    for position in range(3 + 16):
        other_text, other_image = text.clone(), image.clone()
        if position < 3:
            other_text[0, position] = (text[0, position] + 1) % 5
        else:
            other_image.view(-1)[position - 3] = (image.view(-1)[position - 3] + 1) % 6
        after = torch.cat([x.flatten(1) for x in network(other_text, other_image)], dim=1)
        text_change, image_change = (after - before).abs()[0].split([3 * 8, 16 * 6])
        rows.append(torch.cat([text_change.view(3, 8).amax(1), image_change.view(16, 6).amax(1)]))
    return torch.stack(rows)


@pytest.mark.parametrize("pattern", PATTERNS)
@torch.no_grad()
def test_prediction_of_one_layer_depends_exactly_on_the_visible_inputs(pattern):
    change = prediction_changes(make_network(pattern, depth=1).double())
    visible = dense_mask(pattern, STREAM)
    depends = change[1:-1, :].T > 1e-6
    assert torch.equal(depends, visible[:, 1:])
    assert not change[-1].any()  # the last image token is not an input


@pytest.mark.parametrize("parts", [{}, MODERN])
@pytest.mark.parametrize("pattern", ["paper", *PATTERNS])
@torch.no_grad()
def test_prediction_does_not_depend_on_its_target_or_later_tokens(pattern, parts):
    change = prediction_changes(make_network(pattern, **parts).double())
    for position in range(1, 20):  # the input at `position` is the target of `position - 1`
        assert (change[position, :position] < 1e-6).all(), position


@pytest.mark.parametrize("parts", [{}, MODERN])
@pytest.mark.parametrize("pattern", ["paper", *PATTERNS])
@torch.no_grad()
def test_cached_steps_equal_the_forward_pass(pattern, parts):
    network, candidates = make_network(pattern, **parts), 2
    text, _ = make_batch(2)
    image = torch.randint(6, (2 * candidates, 4, 4), generator=torch.Generator().manual_seed(3))
    _, expected = network(text.repeat_interleave(candidates, dim=0), image)
    logits, caches = network.prefill(text, candidates)
    for index in range(16):
        if index > 0:
            logits = network.step(image.flatten(1)[:, index - 1], index - 1, caches)
        torch.testing.assert_close(logits, expected[:, index], rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1


@pytest.mark.filterwarnings("error")  # torch's RMSNorm warns about mixed dtypes
@pytest.mark.parametrize("parts", [{}, MODERN])
def test_logits_have_their_vocabulary_and_are_fp32_under_autocast(parts):
    text, image = make_batch(2)
    network = make_network(**parts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        text_logits, image_logits = network(text, image)
        first, caches = network.prefill(text, 1)
        second = network.step(image[:, 0, 0], 0, caches)
        next_text = network.next_text(text)
    assert text_logits.shape == (2, 3, STREAM.text_classes)
    assert image_logits.shape == (2, 16, STREAM.image_vocab)
    for logits in (text_logits, image_logits, first, second, next_text):
        assert logits.dtype == torch.float32
        # Nearly none is a bf16 number, as all would be after a product in bf16.
        assert (logits == logits.bfloat16()).float().mean() < 0.1


@torch.no_grad()
def test_learned_image_positions_are_the_sum_of_row_and_column():
    network = make_network()
    states = network.embed_image(torch.zeros(1, 16, dtype=torch.long)).view(4, 4, -1)
    row_differences = states - states[:1]  # the same in every column
    expected = row_differences[:, :1].expand_as(row_differences)
    torch.testing.assert_close(row_differences, expected)
    assert len(states.flatten(0, 1).unique(dim=0)) == 16
    single = network.embed_image(torch.zeros(1, 1, dtype=torch.long), first_index=6)
    torch.testing.assert_close(single[0, 0], states[1, 2])


def test_modern_parts_have_as_many_parameters_as_paper_parts():
    def size(network):
        return sum(p.numel() for p in network.blocks.parameters())

    stream = Stream(text_length=8, text_vocab=5, grid=4, image_vocab=6)
    paper, modern = (
        Transformer(stream, dim=96, depth=2, heads=4, **parts) for parts in ({}, MODERN)
    )
    assert size(modern) == pytest.approx(size(paper), rel=0.01)
    assert isinstance(modern.norm, torch.nn.RMSNorm)
    assert not [name for name, _ in modern.named_parameters() if "position" in name]


def test_checkpointing_does_not_change_gradients():
    gradients = []
    for checkpointing in (False, True):
        network = make_network(checkpointing=checkpointing).train()
        text, image = make_batch(2)
        network.stream.loss(*network(text, image), text, image)["loss"].backward()
        gradients.append([p.grad for p in network.parameters()])
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.filterwarnings("error:.*lru_cache")  # dynamo warns if a graph builds the masks
@pytest.mark.parametrize("parts", [{}, MODERN])
def test_compiled_blocks_compute_the_same_logits(parts):
    text, image = make_batch(2)
    eager, compiled = make_network(**parts), make_network(**parts)
    compiled.compile(backend="eager")  # traces without the time of a compiler
    torch.testing.assert_close(compiled(text, image), eager(text, image))


@pytest.mark.filterwarnings("error:.*lru_cache")
def test_masks_stay_out_of_the_graph_of_a_compiled_network():
    text, image = make_batch(2)
    network = make_network()
    compiled = torch.compile(network, backend="eager")
    torch.testing.assert_close(compiled(text, image), network(text, image))


def test_blocks_of_one_pattern_share_a_compilation_per_batch_size():
    graphs = []

    def count_graphs(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    network = make_network(depth=6)
    network.compile(backend=count_graphs, dynamic=False)
    for batch_size in range(1, 11):
        network(*make_batch(batch_size))
        assert len(graphs) == batch_size


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not should_compile("auto"), reason="needs a compiler")
@pytest.mark.parametrize("parts", [{}, MODERN])
def test_compiled_network_has_the_same_gradients(parts):
    # Regression: inductor computed a wrong gradient of learned rows for a grid of this side.
    stream = Stream(text_length=3, text_vocab=5, grid=10, image_vocab=6)
    torch.manual_seed(0)
    network = Transformer(stream, dim=16, depth=2, heads=2, **parts)
    text, image = torch.randint(5, (2, 3)), torch.randint(6, (2, 10, 10))
    gradients = []
    for _ in range(2):
        loss = stream.loss(*network(text, image), text, image)["loss"]
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
        network.compile()
    for expected, actual in zip(*gradients, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parts", [{}, MODERN], ids=["paper", "modern"])
@torch.no_grad()
def test_a_grid_of_one_token_is_sampled_from_its_forward_pass(parts):
    stream = Stream(text_length=3, text_vocab=5, grid=1, image_vocab=6)
    network, (text, _) = make_network(stream=stream, **parts), make_batch(2)
    for compiled_steps in (False, True):
        logits, _ = network.prefill(text, 2, compiled_steps)
        image = torch.zeros(2, 1, 1, dtype=torch.long)
        torch.testing.assert_close(logits[::2], network(text, image)[1][:, 0])
    assert sample(network, text, 2).shape == (2, 2, 1, 1)


@pytest.mark.parametrize("name", ["norm", "mlp", "positions"])
@pytest.mark.parametrize("value", ["learnt", None])
def test_an_unknown_part_is_refused(name, value):
    with pytest.raises(UserError, match=rf"model\.network\.{name}=(learnt|null) is not possible"):
        Transformer(STREAM, dim=16, depth=1, heads=2, **{name: value})


def test_unknown_pattern_is_rejected_by_name():
    with pytest.raises(ValueError, match=r"paper.*'diagonal'"):
        Transformer(STREAM, dim=8, depth=1, heads=1, pattern="diagonal")


@pytest.mark.parametrize("pattern", ["paper", *PATTERNS])
def test_layers_have_the_configured_pattern(pattern):
    network = Transformer(STREAM, dim=8, depth=3, heads=1, pattern=pattern)
    paper = ["row", "column", "convolutional"]
    expected = paper if pattern == "paper" else [pattern] * 3
    assert [block.attention.pattern for block in network.blocks] == expected


def test_last_layers_of_residual_branches_are_initialized_smaller():
    network = Transformer(STREAM, dim=64, depth=8, heads=2)
    block = network.blocks[0]
    for layer in (block.attention.out, block.mlp.down):
        assert layer.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
    for layer in (block.attention.qkv, block.mlp.up, network.text_embedding):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_default_size_is_the_twelve_billion_parameters_of_the_paper():
    with torch.device("meta"):
        network = Transformer(Stream())
    in_blocks = sum(p.numel() for p in network.blocks.parameters())
    assert len(network.blocks) == 64
    assert in_blocks == pytest.approx(12.09e9, rel=5e-3)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(12.3e9, rel=5e-3)


@pytest.mark.parametrize("parts", [{}, {"norm": "rms", "positions": "rotary", "qk_norm": True}])
def test_dropped_image_tokens_are_predicted_but_not_visible(parts):
    network = make_network("full", **parts)
    text, image = make_batch()
    mask = torch.zeros_like(image, dtype=torch.bool)
    mask[0, 1, 2] = True
    before = network(text, image, mask)[1]
    assert not torch.equal(before, network(text, image)[1])
    changed = image.clone()
    changed[0, 1, 2] = (changed[0, 1, 2] + 1) % STREAM.image_vocab
    torch.testing.assert_close(network(text, changed, mask)[1], before, rtol=0, atol=0)
    changed[0, 1, 1] = (changed[0, 1, 1] + 1) % STREAM.image_vocab
    assert not torch.equal(network(text, changed, mask)[1], before)


@torch.no_grad()
def test_dropped_image_tokens_keep_their_learned_position():
    network = make_network("full")
    text, image = make_batch()
    mask = torch.ones_like(image, dtype=torch.bool)
    before = network(text, image, mask)[1]
    network.row_position.weight[2] = network.row_position.weight[0]
    changes = (network(text, image, mask)[1] - before).abs().amax(dim=2)[0] > 1e-4
    assert changes.tolist() == [False] * 9 + [True] * 7  # row 2 begins with token 8


@torch.no_grad()
def test_dropped_image_tokens_of_a_rotary_prior_have_states_of_zero():
    network = make_network("full", **MODERN)
    _, image = make_batch(2)
    dropped = torch.rand(2, 16) < 0.5
    states = network.embed_image(image.flatten(1), dropped=dropped)
    assert torch.equal((states == 0).all(dim=2), dropped)
    kept = network.embed_image(image.flatten(1))[~dropped]
    assert torch.equal(states[~dropped], kept)


@pytest.mark.parametrize("name", ["dim", "depth", "heads"])
@pytest.mark.parametrize("number", [0, -1, 1.5])
def test_an_impossible_size_is_refused(name, number):
    sizes = {"dim": 8, "depth": 1, "heads": 1, name: number}
    with pytest.raises(UserError, match=rf"model\.network\.{name}={number} is not possible"):
        Transformer(STREAM, **sizes)


PLAIN = PlainStream(text_length=3, text_vocab=5, grid=4, image_vocab=6)
FEATURES = CaptionStream(text_length=3, features=4, grid=4, image_vocab=6)
TEXTS = {
    PLAIN: torch.tensor([[1, 4, -1], [2, 0, 3], [-1, -1, -1]]),
    # A caption with one token on the right, one with three, and one without a caption.
    FEATURES: torch.cat(
        [
            torch.tensor([[0.0, 0, 1], [1, 1, 1], [0, 0, 0]])[..., None]
            * torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0)),
            torch.tensor([[0.0, 0, 1], [1, 1, 1], [0, 1, 1]])[..., None],
        ],
        dim=-1,
    ),
}


@pytest.mark.parametrize("stream", TEXTS, ids=lambda stream: type(stream).__name__)
@pytest.mark.parametrize("parts", [{}, MODERN], ids=["paper", "modern"])
@torch.no_grad()
def test_other_streams_have_causal_predictions_and_equal_cached_steps(stream, parts):
    network = make_network("paper", stream=stream, **parts)
    text, image = TEXTS[stream], torch.randint(6, (3, 4, 4))
    text_logits, expected = network(text, image)
    assert text_logits.shape == (3, stream.predicted_text, stream.text_classes)
    logits, caches = network.prefill(text, 1)
    for index in range(16):
        if index > 0:
            logits = network.step(image.flatten(1)[:, index - 1], index - 1, caches)
        torch.testing.assert_close(logits, expected[:, index], rtol=1e-5, atol=1e-5)
        changed = image.clone()
        changed.flatten(1)[:, index] = (image.flatten(1)[:, index] + 1) % 6
        _, after = network(text, changed)
        torch.testing.assert_close(after[:, : index + 1], expected[:, : index + 1])
    greedy = sample(network, text, 2, sampling=Sampling(temperature=0, guidance=2.0))[:, 0]
    empty = network(stream.without_caption(text), greedy)[1]
    guided = empty + 2 * (network(text, greedy)[1] - empty)
    assert torch.equal(guided.argmax(dim=-1), greedy.flatten(1))


@torch.no_grad()
def test_a_plain_stream_predicts_each_text_token_but_the_first():
    network = make_network(stream=PLAIN)
    text, image = TEXTS[PLAIN], torch.randint(6, (3, 4, 4))
    logits, _ = network(text, image)
    for position in (1, 2):
        actual = network.next_text(text[:, :position])
        torch.testing.assert_close(actual, logits[:, position - 1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_padding_and_a_missing_caption_have_their_own_states():
    network, text = make_network(stream=FEATURES), TEXTS[FEATURES]
    states = network.embed_text(text) - network.text_position.weight
    padding, empty = network.text_embedding.special.weight
    torch.testing.assert_close(states[0, :2], padding.expand(2, -1))
    torch.testing.assert_close(states[2], empty.expand(3, -1))
    torch.testing.assert_close(states[1], network.text_embedding.projection(text[1, :, :4]))
    without = network.embed_text(FEATURES.without_caption(text)) - network.text_position.weight
    torch.testing.assert_close(without, empty.expand(3, 3, -1))


def test_caption_dropout_trains_the_state_of_a_missing_caption():
    network, text = make_network(stream=FEATURES), TEXTS[FEATURES]
    image = torch.randint(6, (3, 4, 4))
    FEATURES.loss(*network(text, image), text, image)["loss"].backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    assert not [name for name, gradient in gradients.items() if gradient is None]
    assert gradients["text_embedding.special.weight"].abs().sum(dim=1).min() > 0
