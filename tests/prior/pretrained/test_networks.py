"""Public priors can do what a `Transformer` can: all kinds of sampling and of training."""

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from helpers import public_priors
from tilewright.distributed.fsdp import _materialize
from tilewright.distributed.powersgd import block_parameters
from tilewright.prior import (
    PriorModule,
    Sampling,
    sample,
    sample_rows,
    with_low_precision_weights,
)
from tilewright.training.schedules import Constant

LENGTHS = {"llamagen": (1, 3, 5, 2), "mindalle": (0, 2, 6, 4)}
GRID, VOCAB = 4, 24
pytestmark = pytest.mark.parametrize("name", LENGTHS)


def make(name):
    layout = getattr(public_priors, f"{name}_layout")(**getattr(public_priors, name.upper()))
    return getattr(public_priors, f"make_{name}")(public_priors.random_weights(layout))


def make_batch(name):
    text = getattr(public_priors, f"{name}_text")(LENGTHS[name])
    generator = torch.Generator().manual_seed(2)
    return text, torch.randint(VOCAB, (len(text), GRID, GRID), generator=generator)


@pytest.mark.parametrize(("captions", "candidates"), [(1, 1), (4, 1), (3, 2)])
def test_steps_with_tensor_indices_equal_steps_with_integers(name, captions, candidates):
    network, text = make(name), make_batch(name)[0][:captions]
    with torch.inference_mode():
        _, eager = network.prefill(text, candidates)
        _, compiled = network.prefill(text, candidates, compiled_steps=True)
        for index in range(GRID**2 - 1):
            tokens = torch.randint(VOCAB, (captions * candidates,))
            expected = network.step(tokens, index, eager)
            actual = network.step(tokens, torch.tensor([index]), compiled)
            torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_compiled_sampling_equals_eager_sampling(name):
    network, text = make(name), make_batch(name)[0]
    settings = {"guidance": 2.0, "top_k": 8}
    expected = sample(network, text, 2, sampling=Sampling(**settings))
    actual = sample(network, text, 2, sampling=Sampling(**settings, compile=True))
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_an_image_does_not_depend_on_its_batch_and_continues_its_own_beginning(name, guidance):
    network, text = make(name), make_batch(name)[0]
    sampling = Sampling(guidance=guidance, top_k=8)
    images = sample(network, text, 3, sampling=sampling, seed=5)
    alone = sample(
        network, text[2:3], 1, sampling=sampling, seed=5, caption_offset=2, candidate_offset=1
    )
    assert torch.equal(alone[0, 0], images[2, 1])
    prompt = images[:, 0, :2]
    continued = sample(network, text, sampling=sampling, seed=5, image_prompt_tokens=prompt)
    assert torch.equal(continued[:, 0], images[:, 0])
    assert len(images.flatten(0, 1).unique(dim=0)) == 12
    rows = [row.shape[2] for row in sample_rows(network, text, sampling=sampling)]
    assert rows == [1, 2, 3, 4]


@pytest.mark.parametrize(("weights", "error"), [("bfloat16", 0.03), ("int8", 0.06)])
@torch.no_grad()
def test_low_precision_weights_give_nearly_the_same_logits(name, weights, error):
    network, (text, image) = make(name), make_batch(name)
    converted = with_low_precision_weights(network, weights)
    assert not any(type(layer) is nn.Linear for layer in converted.modules())
    expected, actual = network(text, image)[1], converted(text, image)[1]
    assert 0 < (actual - expected).std() < error * expected.std()
    assert sample(network, text, sampling=Sampling(weights=weights)).shape == (4, 1, GRID, GRID)


def gradients(network, text, image):
    network.zero_grad()
    stream = network.stream
    stream.loss(*network(text, image), text, image)["loss"].backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def test_gradient_of_mixed_captions_is_the_mean_over_their_rows(name):
    network, (text, image) = make(name), make_batch(name)
    if name == "mindalle":  # the text loss is a mean over tokens, and rows have different numbers
        text[:] = text[2]
    batch = gradients(network, text, image)
    rows = [gradients(network, text[i : i + 1], image[i : i + 1]) for i in range(4)]
    assert batch.keys() - {"no_caption.weight"} == dict(network.named_parameters()).keys() - {
        "no_caption.weight"
    }
    for key, value in batch.items():
        mean = sum(row[key] for row in rows) / 4
        torch.testing.assert_close(value, mean, rtol=1e-4, atol=1e-5)


def test_checkpointing_gives_the_same_gradient(name):
    network, (text, image) = make(name), make_batch(name)
    expected = gradients(network.train(), text, image)
    network.checkpointing = True
    actual = gradients(network, text, image)
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value)


def test_bf16_training_is_close_to_fp32(name):
    network, (text, image) = make(name), make_batch(name)
    expected = network(text, image)[1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = network(text, image)[1]
    assert actual.dtype == torch.float32
    assert 0 < (actual - expected).std() < 0.05 * expected.std()


def test_padding_is_not_visible_in_llamagen_and_visible_in_mindalle(name):
    network, (text, image) = make(name), make_batch(name)
    expected = network(text, image)[1]
    if name == "llamagen":
        changed = text.clone()
        changed[..., :-1][text[..., -1] == 0] = 7.0
    else:
        network.stream = network.stream.__class__(6, 40, 4, 24, padding_token=0)
        changed = text
    is_full = torch.tensor([length == text.shape[1] for length in LENGTHS[name]])
    change = (network(changed, image)[1] - expected).abs().amax(dim=(1, 2))
    assert (change[is_full] < 1e-5).all()
    if name == "llamagen":
        assert (change < 1e-5).all()
    else:
        assert (change[~is_full] > 1e-2).all()


def test_training_with_dropped_captions_and_image_tokens_reaches_every_weight(name):
    torch.manual_seed(0)
    network, (text, image) = make(name), make_batch(name)
    module = PriorModule(network, Constant(1e-3), caption_dropout=0.5, image_dropout=0.9)
    mask = torch.rand(image.shape) < 0.5
    text = module._drop_captions(text.repeat(4, *[1] * (text.dim() - 1)))
    module.terms(text, image.repeat(4, 1, 1), mask.repeat(4, 1, 1))["loss"].backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad.abs().sum() > 0, key


@torch.no_grad()
def test_dropped_image_tokens_keep_their_learned_position(name):
    network, image = make(name), make_batch(name)[1].flatten(1)
    dropped = torch.rand(image.shape) < 0.5
    states = network.embed_image(image, dropped=dropped)
    positions = torch.zeros(GRID**2, 32)
    if name == "mindalle":  # LlamaGen's positions are rotary
        positions = network.image_position.weight
    assert torch.equal(states[dropped], positions.expand_as(states)[dropped])
    assert torch.equal(states[~dropped], network.embed_image(image)[~dropped])


def test_all_weights_of_the_blocks_are_sharded_and_compressed_with_their_block(name):
    network = make(name)
    expected = {id(p) for n, p in network.named_parameters() if n.startswith("blocks.")}
    assert {id(parameter) for parameter in block_parameters(network)} == expected


def test_a_network_on_the_meta_device_is_initialized_like_another(name):
    network = make(name)
    settings = {"dim": 32, "depth": 2, "heads": 2}
    with torch.device("meta"):
        other = type(network)(network.stream, **settings)
    _materialize(other, other)
    normal = type(network)(network.stream, **settings)
    for (key, value), expected in zip(
        other.state_dict().items(), normal.state_dict().values(), strict=True
    ):
        assert value.std().item() == pytest.approx(expected.std().item(), rel=0.5, abs=1e-6), key
    for (key, value), expected in zip(other.named_buffers(), normal.buffers(), strict=True):
        assert torch.equal(value, expected), key


def test_a_sharded_network_has_the_same_gradient(name):
    text, image = make_batch(name)
    expected = gradients(make(name), text, image)
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        network = make(name)
        for block in network.blocks:
            fully_shard(block)
        fully_shard(network)
        actual = gradients(network, text, image)
        for key, value in actual.items():
            torch.testing.assert_close(value.full_tensor(), expected[key])
    finally:
        torch.distributed.destroy_process_group()
    assert actual.keys() == expected.keys()
