"""Low-precision weights: accuracy, and what stays unchanged."""

import pytest
import torch
from torch import nn

from tilewright.errors import UserError
from tilewright.prior import (
    Sampling,
    Stream,
    Transformer,
    sample,
    sample_rows,
    with_low_precision_weights,
)
from tilewright.prior.low_precision import BFloat16Linear, Int8Linear

STREAM = Stream(text_length=4, text_vocab=9, grid=4, image_vocab=16)
MODERN = {"norm": "rms", "mlp": "swiglu", "positions": "rotary", "qk_norm": True}
TOLERANCES = {"bfloat16": 0.01, "int8": 0.02}  # relative to the standard deviation of fp32 outputs


def make_network(**parts):
    torch.manual_seed(0)
    network = Transformer(STREAM, dim=64, depth=3, heads=4, **parts).eval()
    with torch.no_grad():  # larger weights, so that outputs depend on captions and earlier tokens
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def make_batch(size):
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(9, (size, 4), generator=generator)
    return text, torch.randint(16, (size, 4, 4), generator=generator)


@pytest.mark.parametrize("weights", TOLERANCES)
@pytest.mark.parametrize("shape", [(5, 48), (1, 48), (2, 3, 48)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_converted_layer_is_close_to_the_original(weights, shape, bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 24, bias), torch.randn(shape)
    with torch.no_grad():
        layer.weight[3] = 0  # a row whose scale would be zero
        converted = {"bfloat16": BFloat16Linear, "int8": Int8Linear}[weights](layer)
        expected, actual = layer(x), converted(x)
    assert actual.dtype == torch.float32
    assert (actual - expected).std() < TOLERANCES[weights] * expected.std()


def test_int8_layer_returns_the_bias_for_states_of_zero():
    layer = nn.Linear(8, 4)
    torch.testing.assert_close(Int8Linear(layer)(torch.zeros(2, 8)), layer.bias.expand(2, 4))


@pytest.mark.parametrize("weights", TOLERANCES)
@pytest.mark.parametrize("parts", [{}, MODERN], ids=["paper", "modern"])
def test_logits_are_close_to_fp32(weights, parts):
    network = make_network(**parts)
    converted = with_low_precision_weights(network, weights)
    with torch.no_grad():
        expected, actual = network(*make_batch(8))[1], converted(*make_batch(8))[1]
    # Measured: 0.006 (bf16) and 0.011 (int8) for paper parts, 0.006 and 0.015 for modern parts.
    assert (actual - expected).std() < 3 * TOLERANCES[weights] * expected.std()
    assert (actual == actual.bfloat16()).float().mean() < 0.1  # the head stays in fp32
    assert not torch.equal(actual, expected)


@pytest.mark.parametrize("weights", TOLERANCES)
def test_cached_steps_equal_the_whole_stream(weights):
    network, (text, image) = with_low_precision_weights(make_network(), weights), make_batch(2)
    with torch.no_grad():
        expected = network(text, image)[1]
        logits, caches = network.prefill(text, 1)
        for index in range(16):
            torch.testing.assert_close(logits, expected[:, index], atol=0.03, rtol=0)
            if index < 15:
                logits = network.step(image.flatten(1)[:, index], index, caches)


@pytest.mark.parametrize("weights", TOLERANCES)
def test_original_network_is_not_changed(weights):
    network = make_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    converted = with_low_precision_weights(network, weights)
    sample(network, make_batch(2)[0], sampling=Sampling(weights=weights))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(type(layer) is nn.Linear for layer in converted.modules())
    assert with_low_precision_weights(converted, weights) is converted
    assert with_low_precision_weights(network, "float32") is network


def test_weights_that_keep_their_dtype_are_shared():
    network = make_network()
    shared = {name: value.data_ptr() for name, value in network.named_parameters()}
    converted = dict(with_low_precision_weights(network, "bfloat16").named_parameters())
    assert {name for name in shared if "blocks" not in name or "norm" in name} == set(converted)
    assert all(value.data_ptr() == shared[name] for name, value in converted.items())


@pytest.mark.parametrize("weights", TOLERANCES)
def test_sampling_setting_converts_the_weights(weights):
    network, text = make_network(), make_batch(6)[0]
    tokens = sample(network, text, sampling=Sampling(weights=weights))
    assert torch.equal(tokens, sample(with_low_precision_weights(network, weights), text))
    # Only the first row: after one different token, an image goes its own way.
    first_row = next(sample_rows(network, text, sampling=Sampling(weights=weights)))
    is_equal = first_row == next(sample_rows(network, text))
    assert is_equal.float().mean() > 0.8


def test_int8_image_does_not_depend_on_the_rest_of_the_batch():
    network, text = make_network(), make_batch(6)[0]
    text[3:] = 0
    with torch.no_grad():  # an outlier that would stretch a scale shared by the batch
        network.text_embedding.weight[0] *= 100
    sampling = Sampling(weights="int8")
    together = sample(network, text, sampling=sampling)
    assert torch.equal(together[:3], sample(network, text[:3], sampling=sampling))


def test_int8_on_another_device_than_the_cpu_is_rejected():
    with pytest.raises(UserError, match="weights=int8 needs a CPU, not meta"):
        with_low_precision_weights(make_network().to("meta"), "int8")
