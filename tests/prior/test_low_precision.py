"""Lighter weights: how near they draw to the plain ones, and what they leave alone."""

import pytest
import torch
from torch import nn

from tilewright.errors import UserError
from tilewright.prior import Sampling, Stream, Transformer, lightened, sample, sample_rows
from tilewright.prior.low_precision import BFloat16Linear, Int8Linear

STREAM = Stream(text_length=4, text_vocab=9, grid=4, image_vocab=16)
MODERN = {"norm": "rms", "mlp": "swiglu", "positions": "rotary", "qk_norm": True}
LIGHT = {"bfloat16": 0.01, "int8": 0.02}  # how far from fp32, as a share of the spread


def network(**parts):
    torch.manual_seed(0)
    network = Transformer(STREAM, dim=64, depth=3, heads=4, **parts).eval()
    with torch.no_grad():  # as at 0.02 captions and earlier tokens hardly matter
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def pairs(count):
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(9, (count, 4), generator=generator)
    return text, torch.randint(16, (count, 4, 4), generator=generator)


@pytest.mark.parametrize("weights", LIGHT)
@pytest.mark.parametrize("shape", [(5, 48), (1, 48), (2, 3, 48)], ids=str)
def test_a_layer_is_near_the_one_it_is_made_of(weights, shape):
    torch.manual_seed(0)
    layer, x = nn.Linear(48, 24), torch.randn(shape)
    with torch.no_grad():
        layer.weight[3] = 0  # a row with no scale
        light = {"bfloat16": BFloat16Linear, "int8": Int8Linear}[weights](layer)
        expected, actual = layer(x), light(x)
    assert actual.dtype == torch.float32
    assert (actual - expected).std() < LIGHT[weights] * expected.std()


def test_states_of_zero_give_the_bias():
    layer = nn.Linear(8, 4)
    torch.testing.assert_close(Int8Linear(layer)(torch.zeros(2, 8)), layer.bias.expand(2, 4))


@pytest.mark.parametrize("weights", LIGHT)
@pytest.mark.parametrize("parts", [{}, MODERN], ids=["paper", "modern"])
def test_logits_are_near_those_of_fp32(weights, parts):
    plain = network(**parts)
    light = lightened(plain, weights)
    with torch.no_grad():
        expected, actual = plain(*pairs(8))[1], light(*pairs(8))[1]
    # Measured: 0.006 and 0.011 of the spread with the paper's parts, 0.006 and 0.015 with modern.
    assert (actual - expected).std() < 3 * LIGHT[weights] * expected.std()
    assert not torch.equal(actual, expected)


@pytest.mark.parametrize("weights", LIGHT)
def test_the_cached_steps_are_those_of_the_whole(weights):
    light, (text, image) = lightened(network(), weights), pairs(2)
    with torch.no_grad():
        expected = light(text, image)[1]
        logits, caches = light.prefill(text, 1)
        for number in range(16):
            torch.testing.assert_close(logits, expected[:, number], atol=0.03, rtol=0)
            if number < 15:
                logits = light.step(image.flatten(1)[:, number], number, caches)


@pytest.mark.parametrize("weights", LIGHT)
def test_the_network_itself_is_left_alone(weights):
    plain = network()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    light = lightened(plain, weights)
    sample(plain, pairs(2)[0], sampling=Sampling(weights=weights))
    assert all(torch.equal(before[name], value) for name, value in plain.state_dict().items())
    assert not any(type(layer) is nn.Linear for layer in light.modules())
    assert lightened(light, weights) is light
    assert lightened(plain, "float32") is plain


@pytest.mark.parametrize("weights", LIGHT)
def test_a_setting_of_sampling_is_what_draws(weights):
    plain, text = network(), pairs(6)[0]
    drawn = sample(plain, text, sampling=Sampling(weights=weights))
    assert torch.equal(drawn, sample(lightened(plain, weights), text))
    # Most pictures go their own way at the first token that differs.
    first_row = next(sample_rows(plain, text, sampling=Sampling(weights=weights)))
    same = first_row == next(sample_rows(plain, text))
    assert same.float().mean() > 0.8


def test_a_picture_in_int8_does_not_depend_on_those_beside_it():
    plain, text = network(), pairs(6)[0]
    text[3:] = 0
    with torch.no_grad():  # one caption far out would stretch a scale that all shared
        plain.text_embedding.weight[0] *= 100
    how = Sampling(weights="int8")
    assert torch.equal(sample(plain, text, sampling=how)[:3], sample(plain, text[:3], sampling=how))


def test_int8_on_another_device_is_refused():
    with pytest.raises(UserError, match="weights=int8 is for a CPU; on meta take weights=bfloat16"):
        lightened(network().to("meta"), "int8")
