"""The prior's network: what each logit may depend on, cached steps, its size."""

import pytest
import torch

from tilewright.prior import Stream, Transformer
from tilewright.prior.patterns import PATTERNS, dense_mask
from tilewright.training.compiling import compiles

STREAM = Stream(text_length=3, text_vocab=5, grid=4, image_vocab=6)


MODERN = {"norm": "rms", "mlp": "swiglu", "positions": "rotary", "qk_norm": True}


def tiny(pattern="paper", depth=3, **parts):
    torch.manual_seed(0)
    network = Transformer(STREAM, dim=16, depth=depth, heads=2, pattern=pattern, **parts).eval()
    with torch.no_grad():  # as at 0.02 every logit is nearly zero
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return network


def tokens(count=1):
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(5, (count, 3), generator=generator)
    text[:, 2] = -1
    return text, torch.randint(6, (count, 4, 4), generator=generator)


def changes(network):
    """[L, L] largest change of each prediction (column) as each input token (row) changes.

    Row 0 is the start token's, which never changes; the last row is the last image token's.
    """
    text, image = tokens()
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
def test_with_one_layer_a_prediction_depends_on_its_mask_and_nothing_else(pattern):
    change = changes(tiny(pattern, depth=1).double())
    visible = dense_mask(pattern, STREAM)
    seen = change[1:-1, :].T > 1e-6
    assert torch.equal(seen, visible[:, 1:])
    assert not change[-1].any()  # the last image token is no input


@pytest.mark.parametrize("parts", [{}, MODERN])
@pytest.mark.parametrize("pattern", ["paper", *PATTERNS])
@torch.no_grad()
def test_no_prediction_depends_on_its_own_token_or_a_later_one(pattern, parts):
    change = changes(tiny(pattern, **parts).double())
    for position in range(1, 20):  # the input at `position` is the target of `position - 1`
        assert (change[position, :position] < 1e-6).all(), position


@pytest.mark.parametrize("parts", [{}, MODERN])
@pytest.mark.parametrize("pattern", ["paper", *PATTERNS])
@torch.no_grad()
def test_cached_steps_equal_the_whole_forward_at_every_position(pattern, parts):
    network, candidates = tiny(pattern, **parts), 2
    text, _ = tokens(2)
    image = torch.randint(6, (2 * candidates, 4, 4), generator=torch.Generator().manual_seed(3))
    _, expected = network(text.repeat_interleave(candidates, dim=0), image)
    logits, caches = network.prefill(text, candidates)
    for number in range(16):
        if number > 0:
            logits = network.step(image.flatten(1)[:, number - 1], number - 1, caches)
        torch.testing.assert_close(logits, expected[:, number], rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1


@pytest.mark.filterwarnings("error")  # torch's RMSNorm warns where it meets two precisions
@pytest.mark.parametrize("parts", [{}, MODERN])
def test_logits_are_fp32_and_of_each_halfs_own_classes(parts):
    text, image = tokens(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        text_logits, image_logits = tiny(**parts)(text, image)
    assert text_logits.shape == (2, 3, STREAM.text_classes)
    assert image_logits.shape == (2, 16, STREAM.image_vocab)
    assert (text_logits.dtype, image_logits.dtype) == (torch.float32, torch.float32)


@torch.no_grad()
def test_image_tokens_are_placed_by_row_and_by_column():
    network = tiny()
    states = network.embed_image(torch.zeros(1, 16, dtype=torch.long)).view(4, 4, -1)
    rows = states - states[:1]  # of one column: the rows' difference, whichever the column
    torch.testing.assert_close(rows, rows[:, :1].expand_as(rows))
    assert len(states.flatten(0, 1).unique(dim=0)) == 16
    one = network.embed_image(torch.zeros(1, 1, dtype=torch.long), first=6)
    torch.testing.assert_close(one[0, 0], states[1, 2])


def test_the_modern_parts_have_as_many_parameters():
    def size(network):
        return sum(p.numel() for p in network.blocks.parameters())

    stream = Stream(text_length=8, text_vocab=5, grid=4, image_vocab=6)
    paper, modern = (
        Transformer(stream, dim=96, depth=2, heads=4, **parts) for parts in ({}, MODERN)
    )
    assert size(modern) == pytest.approx(size(paper), rel=0.01)
    assert isinstance(modern.norm, torch.nn.RMSNorm)
    assert not [name for name, _ in modern.named_parameters() if "position" in name]


def test_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        network = tiny(checkpointing=checkpointing).train()
        text, image = tokens(2)
        network.stream.loss(*network(text, image), text, image)["loss"].backward()
        gradients.append([p.grad for p in network.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.filterwarnings("error:.*lru_cache")  # masks are made outside, once
@pytest.mark.parametrize("parts", [{}, MODERN])
def test_a_compiled_network_predicts_alike(parts):
    text, image = tokens(2)
    plain, compiled = tiny(**parts), tiny(**parts)
    compiled.compile(backend="eager")  # what is traced, without the time of a compiler
    torch.testing.assert_close(compiled(text, image), plain(text, image))


@pytest.mark.filterwarnings("error:.*lru_cache")
def test_no_graph_makes_masks_also_where_the_whole_is_compiled():
    text, image = tokens(2)
    network = tiny()
    whole = torch.compile(network, backend="eager")
    torch.testing.assert_close(whole(text, image), network(text, image))


def test_blocks_are_compiled_once_for_each_shape_however_many():
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    network = tiny(depth=6)
    network.compile(backend=count, dynamic=False)
    for batch in range(1, 11):
        network(*tokens(batch))
        assert len(graphs) == batch


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not compiles("auto"), reason="there is no compiler")
@pytest.mark.parametrize("parts", [{}, MODERN])
def test_a_compiled_network_learns_alike(parts):
    # A grid whose positions inductor once counted wrong, in learned rows' gradient alone.
    stream = Stream(text_length=3, text_vocab=5, grid=10, image_vocab=6)
    torch.manual_seed(0)
    network = Transformer(stream, dim=16, depth=2, heads=2, **parts)
    text, image = torch.randint(5, (2, 3)), torch.randint(6, (2, 10, 10))
    gradients = []
    for _ in range(2):
        loss = stream.loss(*network(text, image), text, image)["loss"]
        gradients.append(torch.autograd.grad(loss, list(network.parameters())))
        network.compile()
    for plain, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-6)


def test_an_unknown_pattern_is_refused_by_name():
    with pytest.raises(ValueError, match=r"paper.*'diagonal'"):
        Transformer(STREAM, dim=8, depth=1, heads=1, pattern="diagonal")


@pytest.mark.parametrize("pattern", ["paper", *PATTERNS])
def test_the_layers_follow_the_pattern(pattern):
    network = Transformer(STREAM, dim=8, depth=3, heads=1, pattern=pattern)
    paper = ["row", "column", "convolutional"]
    expected = paper if pattern == "paper" else [pattern] * 3
    assert [block.attention.pattern for block in network.blocks] == expected


def test_the_residual_branches_begin_smaller_the_deeper_the_stack():
    network = Transformer(STREAM, dim=64, depth=8, heads=2)
    block = network.blocks[0]
    for last in (block.attention.out, block.mlp.down):
        assert last.weight.std().item() == pytest.approx(0.02 / 4, rel=0.1)
    for other in (block.attention.qkv, block.mlp.up, network.text_embedding):
        assert other.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_the_defaults_are_the_papers_twelve_billion():
    with torch.device("meta"):
        network = Transformer(Stream())
    blocks = sum(p.numel() for p in network.blocks.parameters())
    assert len(network.blocks) == 64
    assert blocks == pytest.approx(12.09e9, rel=5e-3)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(12.3e9, rel=5e-3)


@pytest.mark.parametrize("parts", [{}, {"norm": "rms", "positions": "rotary", "qk_norm": True}])
def test_hidden_image_tokens_are_predicted_and_not_seen(parts):
    network = tiny("full", **parts)
    text, image = tokens()
    hidden = torch.zeros_like(image, dtype=torch.bool)
    hidden[0, 1, 2] = True
    before = network(text, image, hidden)[1]
    assert not torch.equal(before, network(text, image)[1])
    changed = image.clone()
    changed[0, 1, 2] = (changed[0, 1, 2] + 1) % STREAM.image_vocab
    torch.testing.assert_close(network(text, changed, hidden)[1], before, rtol=0, atol=0)
    changed[0, 1, 1] = (changed[0, 1, 1] + 1) % STREAM.image_vocab
    assert not torch.equal(network(text, changed, hidden)[1], before)
