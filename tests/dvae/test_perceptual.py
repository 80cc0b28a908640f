"""Perceptual loss: what it compares, where its gradients go, and parity with the package lpips."""

import copy

import pytest
import torch
import torchvision
from torch.nn import functional as F

from tilewright.dvae import PerceptualLoss
from tilewright.efficientnet import EfficientNetLite
from tilewright.errors import UserError


@pytest.fixture(scope="module")
def loss():
    return PerceptualLoss()


def images(count=2, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_it_is_the_mean_squared_distance_of_normalized_features(loss):
    first, second = images(), images().flip(3)
    network = EfficientNetLite()
    expected = []
    for a, b in zip(network.feature_maps(first), network.feature_maps(second), strict=True):
        a, b = (x / x.norm(dim=1, keepdim=True) for x in (a, b))
        expected.append((a - b).square().sum(1).mean())
    torch.testing.assert_close(loss(first, second), sum(expected) / 5)
    assert loss(first, first) == 0


def test_blur_is_farther_than_noise_of_the_same_squared_error(loss):
    """A squared error cannot tell them apart, and people can."""
    torch.manual_seed(0)
    sharp = F.interpolate(images(2, 8), size=32)
    blurred = torchvision.transforms.functional.gaussian_blur(sharp, 9, 2.0)
    size = (blurred - sharp).square().mean().sqrt()
    brighter = sharp + size
    assert loss(sharp, blurred) > 2 * loss(sharp, brighter)


def test_gradients_reach_the_reconstructions_only(loss):
    target, reconstruction = images().requires_grad_(), images().flip(3).requires_grad_()
    loss(target, reconstruction).backward()
    assert target.grad is None
    assert reconstruction.grad.abs().sum() > 0
    assert all(p.grad is None for p in loss.distance.parameters())


def test_a_validation_moves_the_network_to_ordinary_tensors(monkeypatch):
    """Tensors of inference mode cannot be used in a training."""
    loss, modes = PerceptualLoss(), []
    loss._device = torch.device("meta")  # so that the next call moves the network
    record = lambda device: modes.append(torch.is_inference_mode_enabled())  # noqa: E731
    monkeypatch.setattr(loss.distance, "to", record)
    with torch.inference_mode():
        loss(images(), images())
    assert modes == [False]


def test_a_copied_module_shares_the_frozen_network(loss):
    assert copy.deepcopy(loss) is loss


def test_lpips_is_that_of_its_package(tmp_path):
    lpips = pytest.importorskip("lpips")
    torch.manual_seed(0)
    vgg = torchvision.models.vgg16(weights=None)
    path = tmp_path / "vgg16.pth"
    torch.save(vgg.state_dict(), path)
    state = torch.random.get_rng_state()
    loss = PerceptualLoss("lpips", vgg_weights=path)
    assert torch.equal(torch.random.get_rng_state(), state)
    reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    layers = [layer for name, layer in reference.net.named_modules() if name.count(".") == 1]
    for layer, source in zip(layers, vgg.features[:30], strict=True):
        layer.load_state_dict(source.state_dict())
    first, second = images(), images().flip(3)
    expected = reference(first, second, normalize=True).mean()
    torch.testing.assert_close(loss(first, second), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "vgg"}, "loss.perceptual.network=vgg is not possible: set one of efficient"),
        ({"weight": 0}, "loss.perceptual.weight=0"),
        ({"network": "lpips", "vgg_weights": "nowhere.pth"}, "vgg_weights to the path of vgg16"),
    ],
)
def test_impossible_settings_are_errors(arguments, message):
    with pytest.raises(UserError, match=message):
        PerceptualLoss(**arguments)


def test_weights_of_another_network_are_an_error(tmp_path):
    pytest.importorskip("lpips")
    path = tmp_path / "alexnet.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 11)}, path)
    with pytest.raises(UserError, match="is not VGG16: give torchvision"):
        PerceptualLoss("lpips", vgg_weights=path)
