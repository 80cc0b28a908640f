"""Tests of the loss terms against torch.distributions, in float64."""

import math

import pytest
import torch
from torch.distributions import Categorical, Laplace, Normal, TransformedDistribution
from torch.distributions.kl import kl_divergence
from torch.distributions.transforms import SigmoidTransform

from tilewright.dvae import Laplace as PixelLaplace
from tilewright.dvae.losses import (
    Gaussian,
    LogitLaplace,
    categorical_kl,
    map_pixels,
    unmap_pixels,
)
from tilewright.errors import UserError


def random_images(count=2):
    return torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def random_maps(channels, count=2):
    return torch.randn(count, channels, 4, 4, generator=torch.Generator().manual_seed(1))


def test_map_pixels_and_its_inverse():
    x = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(map_pixels(x), torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(unmap_pixels(map_pixels(x)), x)


def test_logit_laplace_is_the_density_of_a_sigmoid_transformed_laplace():
    x, parameters = random_images(), random_maps(6)
    mu, log_scale = parameters.double().chunk(2, dim=1)
    reference = TransformedDistribution(Laplace(mu, log_scale.exp()), SigmoidTransform())
    expected = -reference.log_prob(map_pixels(x.double()))
    actual = LogitLaplace().nll(x, parameters)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    assert (LogitLaplace().nll(x, torch.cat([torch.logit(map_pixels(x)), x * 0 - 5], 1)) < 0).all()


def test_logit_laplace_integrates_to_one():
    x = torch.linspace(0.0005, 0.9995, 1000, dtype=torch.float64)  # mapped pixels
    image = unmap_pixels(x).view(1, 1, 1, -1).expand(1, 3, 1, -1)
    parameters = torch.tensor([0.3, 0.3, 0.3, -0.5, -0.5, -0.5]).view(1, 6, 1, 1)
    density = LogitLaplace().nll(image, parameters.expand(1, 6, 1, 1000)).neg().exp()
    assert density[0, 0].mean().item() == pytest.approx(1, abs=2e-3)


def test_logit_laplace_and_its_gradients_are_finite_at_black_and_white():
    image = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    parameters = random_maps(6).requires_grad_()
    nll = LogitLaplace().nll(image, parameters)
    nll.sum().backward()
    assert nll.isfinite().all()
    assert parameters.grad.isfinite().all()


def test_min_log_scale_bounds_small_scales_and_keeps_large_ones():
    image = random_images()
    location = torch.logit(map_pixels(image))
    free, bounded = LogitLaplace(), LogitLaplace(min_log_scale=-3.0)

    def nll_at(likelihood, log_scale):
        scale = torch.full_like(location, log_scale)
        return likelihood.nll(image, torch.cat([location, scale], dim=1))

    # At its location the density is 1 / (2 b x (1 - x)), so the NLL shows ln b.
    torch.testing.assert_close(nll_at(bounded, -50.0), nll_at(free, -3.0))
    torch.testing.assert_close(nll_at(bounded, 9.0), nll_at(free, 9.0), rtol=0, atol=1e-4)
    assert (nll_at(free, -50.0) < nll_at(free, -3.0)).all()


def test_laplace_is_the_density_around_pixel_values():
    x, maps = random_images(), random_maps(3)
    expected = -Laplace(maps.double(), 0.2).log_prob(x.double())
    actual = PixelLaplace(scale=0.2).nll(x, maps)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(PixelLaplace().image(maps), maps.clamp(0, 1))


@pytest.mark.parametrize("kind", [PixelLaplace, Gaussian])
def test_maps_of_any_kind_stand_for_the_same_pixel_values(kind):
    x, pixels = random_images(), random_images() * 0.9
    unit = kind(0.2, maps="unit")
    equal = {"signed": 2 * pixels - 1, "logits": torch.logit(map_pixels(pixels))}
    for name, maps in equal.items():
        other = kind(0.2, maps=name)
        torch.testing.assert_close(other.nll(x, maps), unit.nll(x, pixels), rtol=0, atol=1e-4)
        torch.testing.assert_close(other.image(maps), pixels)
    with pytest.raises(UserError, match=r"likelihood\.maps=sined is not possible: set one of"):
        kind(maps="sined")


def test_a_gaussian_of_deviation_0_354_is_the_squared_error_of_signed_pixels():
    x, maps = random_images(), random_maps(3)
    likelihood = Gaussian(sigma=0.354, maps="signed")
    error = likelihood.nll(x, maps) - likelihood.nll(x, 2 * x - 1)
    torch.testing.assert_close(error, (2 * x - 1 - maps).square(), rtol=0.01, atol=1e-5)


def test_gaussian_is_a_normal_distribution_around_the_unclamped_image():
    x, parameters = random_images(), random_maps(3)
    mean = unmap_pixels(torch.sigmoid(parameters.double()))
    expected = -Normal(mean, 0.2).log_prob(x.double())
    actual = Gaussian(sigma=0.2).nll(x, parameters)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("likelihood", [LogitLaplace(), Gaussian()], ids=["laplace", "gaussian"])
def test_the_image_is_the_clamped_location(likelihood):
    x = random_images()
    location = torch.logit(map_pixels(x))
    parameters = torch.cat([location, random_maps(likelihood.num_maps)[:, 3:]], dim=1)
    torch.testing.assert_close(likelihood.image(parameters), x, rtol=0, atol=1e-5)
    extreme = likelihood.image(100 * random_maps(likelihood.num_maps))
    assert (extreme.min(), extreme.max()) == (0, 1)


def test_kl_agrees_with_torch_distributions():
    logits = 3 * random_maps(7)
    posterior = Categorical(logits=logits.double().movedim(1, -1))
    uniform = Categorical(logits=torch.zeros(7, dtype=torch.float64))
    expected = kl_divergence(posterior, uniform)
    actual = categorical_kl(logits)
    assert actual.shape == (2, 4, 4)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


def test_kl_is_between_zero_and_the_log_of_the_codebook_size():
    assert categorical_kl(torch.full((1, 8, 2, 2), 5.0)).abs().max() < 1e-6
    certain = torch.zeros(1, 8, 2, 2)
    certain[:, 3] = 1000.0
    torch.testing.assert_close(categorical_kl(certain), torch.full((1, 2, 2), math.log(8)))
    between = categorical_kl(5 * random_maps(8))
    assert between.min() > 0
    assert between.max() < math.log(8)


LIKELIHOODS = {
    "laplace": LogitLaplace(),
    "bounded": LogitLaplace(min_log_scale=-3.0),
    "gaussian": Gaussian(),
}
CHANNELS = {"laplace": 6, "bounded": 6, "gaussian": 3, "kl": 7}


def term(name, images, parameters):
    if name == "kl":
        return categorical_kl(parameters)
    return LIKELIHOODS[name].nll(images, parameters)


@pytest.mark.parametrize("name", CHANNELS)
def test_a_repeated_batch_has_the_same_mean(name):
    images, parameters = random_images(), random_maps(CHANNELS[name])
    once = term(name, images, parameters)
    twice = term(name, torch.cat([images, images]), torch.cat([parameters, parameters]))
    torch.testing.assert_close(twice, torch.cat([once, once]))
    torch.testing.assert_close(twice.mean(), once.mean())


@pytest.mark.parametrize("name", CHANNELS)
def test_bf16_autocast_does_not_change_the_terms(name):
    images, rounded = random_images(), random_maps(CHANNELS[name]).bfloat16()  # the decoder's dtype
    plain = term(name, images, rounded.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = term(name, images, rounded)
    assert autocast.dtype == torch.float32
    assert torch.equal(autocast, plain)
