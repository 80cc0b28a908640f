"""Low-rank adapters: the layers they are added to, their state dict, and merging."""

import copy

import pytest
import torch
from torch import nn

from tilewright.errors import UserError
from tilewright.prior import CaptionStream, PlainStream, Stream, Transformer
from tilewright.prior.low_precision import with_low_precision_weights
from tilewright.prior.pretrained import LlamaGenTransformer, MinDALLETransformer
from tilewright.ranker import DualEncoder
from tilewright.training.adapters import (
    LowRankAdapters,
    choose_layers,
    merge_adapters,
    without_adapters,
)
from tilewright.training.optimizers import transformer_optimizer

STREAM = Stream(text_length=4, text_vocab=8, grid=2, image_vocab=6)
TEXT = torch.tensor([[1, 2, -1, -1], [3, 0, 4, 5]])
IMAGE = torch.tensor([[[0, 1], [2, 3]], [[4, 5], [1, 1]]])
RANK = 2


def make_network(**arguments):
    torch.manual_seed(0)
    return Transformer(STREAM, dim=16, depth=2, heads=2, **arguments)


@pytest.fixture
def plain():
    return make_network()


@pytest.fixture
def adapted(plain):
    """The plain network with adapters whose B is no longer zero."""
    pytest.importorskip("peft")
    network = copy.deepcopy(plain)
    LowRankAdapters(rank=RANK, alpha=6).add_to(network)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return network


def test_new_adapters_do_not_change_the_output(plain):
    pytest.importorskip("peft")
    network = copy.deepcopy(plain)
    LowRankAdapters(rank=RANK).add_to(network)
    for expected, actual in zip(plain(TEXT, IMAGE), network(TEXT, IMAGE), strict=True):
        torch.testing.assert_close(expected, actual, rtol=1e-6, atol=1e-6)


def test_only_adapters_are_trained_saved_and_loaded(plain, adapted):
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    layers = [f"blocks.{n}.{name}" for n in range(2) for name in ("attention.qkv", "mlp.down")]
    for layer in layers:
        assert {f"{layer}.lora_{matrix}.default.weight" for matrix in "AB"} <= trained
    state = adapted.state_dict()
    assert state.keys() == trained
    other = copy.deepcopy(plain)
    LowRankAdapters(rank=RANK, alpha=6).add_to(other)
    other.load_state_dict(state)
    assert torch.equal(other(TEXT, IMAGE)[1], adapted(TEXT, IMAGE)[1])
    del state[min(state)]
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(state)


def test_gradients_reach_only_adapters_with_activation_checkpointing():
    pytest.importorskip("peft")
    networks = [make_network(checkpointing=checkpointing) for checkpointing in (False, True)]
    for network in networks:
        torch.manual_seed(1)
        LowRankAdapters(rank=RANK).add_to(network)
        network.train()(TEXT, IMAGE)[1].square().sum().backward()
    for (name, a), b in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
        assert (a.grad is not None) == ("lora_" in name)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("muon", [False, True])
def test_matrices_of_adapters_decay_and_nothing_else_is_optimized(adapted, muon):
    optimizer = transformer_optimizer(adapted, 0.1, (0.9, 0.99), 1e-8, muon)
    decaying, others = optimizer.param_groups
    assert decaying["weight_decay"] == 0.1
    assert {id(p) for p in decaying["params"]} == {
        id(p) for p in adapted.parameters() if p.requires_grad
    }
    assert others["params"] == []
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    adapted(TEXT, IMAGE)[1].square().sum().backward()
    optimizer.step()
    changed = {n for n, p in adapted.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {name for name in before if "lora_" in name}


def test_all_linear_layers_of_the_blocks_are_chosen_by_default(plain):
    names = {name.partition(".")[2].partition(".")[2] for name in choose_layers(plain, None)}
    assert names == {"attention.qkv", "attention.out", "mlp.up", "mlp.down"}
    sizes = {"text_vocab": 8, "text_length": 4, "image_size": 8, "grid": 2, "dim": 8, "heads": 2}
    chosen = choose_layers(DualEncoder(**sizes, text_depth=1, image_depth=1), None)
    assert "text.blocks.0.qkv" in chosen
    assert "image.blocks.0.down" in chosen
    assert not any("_out" in name for name in chosen)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (["qkv"], ["blocks.0.attention.qkv", "blocks.1.attention.qkv"]),
        (
            ["attention.out", "image_head"],
            [*(f"blocks.{n}.attention.out" for n in "01"), "image_head"],
        ),
        (
            [r"blocks\.1\..*"],
            [f"blocks.1.{n}" for n in ("attention.qkv", "attention.out", "mlp.up", "mlp.down")],
        ),
    ],
)
def test_layers_are_chosen_by_the_end_of_a_name_or_an_expression(plain, layers, expected):
    assert choose_layers(plain, layers) == expected


@pytest.mark.parametrize("entry", ["query", "kv", "norm", "text_embedding"])
def test_unknown_layer_is_refused_with_the_names_of_all(plain, entry):
    with pytest.raises(UserError) as error:
        choose_layers(plain, [entry])
    assert f"lora.layers has {entry}" in str(error.value)
    assert "blocks.*.attention.qkv, blocks.*.attention.out" in str(error.value)
    assert "blocks.0" not in str(error.value)


def test_broken_expression_is_refused(plain):
    with pytest.raises(UserError, match=r"lora\.layers has \(, which is not a regular expression"):
        choose_layers(plain, ["("])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"lora\.rank=0"),
        ({"alpha": 0}, r"lora\.alpha=0"),
        ({"dropout": 2}, r"lora\.dropout=2"),
        ({"layers": "qkv"}, r"lora\.layers=qkv is not a list"),
        ({"layers": []}, r"lora\.layers=\[\] is not a list"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        LowRankAdapters(**settings)


def test_merged_weights_compute_the_same_as_the_adapters(plain, adapted):
    weights = merge_adapters(plain.state_dict(), adapted.state_dict(), scale=6 / RANK)
    assert weights.keys() == plain.state_dict().keys()
    merged = copy.deepcopy(plain)
    merged.load_state_dict(weights)
    for expected, actual in zip(adapted(TEXT, IMAGE), merged(TEXT, IMAGE), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    by_peft = without_adapters(adapted.blocks[0].attention.qkv)
    assert type(by_peft) is nn.Linear
    torch.testing.assert_close(weights["blocks.0.attention.qkv.weight"], by_peft.weight)
    assert isinstance(adapted.blocks[0].attention.qkv.lora_A, nn.Module)


def make_llamagen():
    stream = CaptionStream(text_length=4, features=6, grid=2, image_vocab=6)
    text = torch.randn(2, 4, 7)
    text[..., -1] = 1
    return LlamaGenTransformer(stream, dim=16, depth=2, heads=2), text


def make_mindalle():
    stream = PlainStream(4, 8, 2, 6, padding_token=0)
    return MinDALLETransformer(stream, dim=16, depth=2, heads=2), TEXT


@pytest.mark.parametrize("make", [make_llamagen, make_mindalle])
def test_public_priors_take_adapters_in_all_layers_of_their_blocks(make):
    pytest.importorskip("peft")
    network, text = make()
    base = {name: value.clone() for name, value in network.state_dict().items()}
    assert len(choose_layers(network, None)) == 2 * 4
    LowRankAdapters(rank=RANK, alpha=6).add_to(network)
    network(text, IMAGE)[1].square().sum().backward()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            assert (parameter.grad is not None) == ("lora_" in name)
            if "lora_" in name:
                parameter.normal_(std=0.1)
    merged, _ = make()
    merged.load_state_dict(merge_adapters(base, network.state_dict(), 6 / RANK))
    torch.testing.assert_close(
        merged(text, IMAGE)[1], network(text, IMAGE)[1], rtol=1e-4, atol=1e-5
    )


def test_low_precision_copy_includes_the_adapters(plain, adapted):
    merged = copy.deepcopy(plain)
    merged.load_state_dict(merge_adapters(plain.state_dict(), adapted.state_dict(), 6 / RANK))
    for weights in ("bfloat16", "int8"):
        expected = with_low_precision_weights(merged, weights)(TEXT, IMAGE)[1]
        actual = with_low_precision_weights(adapted, weights)(TEXT, IMAGE)[1]
        torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)


def test_adapters_of_another_network_are_refused(plain, adapted):
    state = adapted.state_dict()
    base = plain.state_dict()
    wide = Transformer(STREAM, dim=32, depth=2, heads=2).state_dict()
    shallow = {name: value for name, value in base.items() if "blocks.1." not in name}
    half = {name: value for name, value in state.items() if "lora_B" not in name}
    unknown = {**state, "blocks.0.attention.qkv.lora_magnitude_vector": torch.zeros(3)}
    for weights, adapters, message in (
        (wide, state, r"has shapes \[48, 2\] and \[2, 16\], which do not fit \[96, 32\]"),
        (shallow, state, r"blocks\.1\.attention\.qkv has no layer in its base"),
        (base, half, "has no second matrix"),
        (base, unknown, r"lora_magnitude_vector is not a matrix of a low-rank adapter"),
    ):
        with pytest.raises(UserError, match=message):
            merge_adapters(weights, adapters, 1.0)


def test_small_changes_of_a_base_in_bf16_are_not_rounded_away():
    base = {"layer.weight": torch.full((2, 2), 1.0, dtype=torch.bfloat16)}
    matrices = {"layer.lora_A.weight": torch.ones(1, 2), "layer.lora_B.weight": torch.ones(2, 1)}
    merged = merge_adapters(base, matrices, 1e-4)["layer.weight"]
    torch.testing.assert_close(merged, torch.full((2, 2), 1.0001))
