"""Codebook, sizes and image tokens of the VQGAN. tests/parity compares it with other code."""

import pytest
import torch
from torch.nn import functional as F

from tilewright.dvae import VQGAN, DiscreteVAEModule, LogitLaplace, VectorQuantizer, vqgan
from tilewright.errors import UserError
from tilewright.training.schedules import Constant

SIZES = {
    "image_size": 16,
    "grid": 8,
    "num_tokens": 40,
    "code_dim": 3,
    "channels": 8,
    "widths": [8, 16],
    "blocks": 1,
    "attention": [1],
    "groups": 4,
}


@pytest.mark.parametrize("is_cosine", [False, True])
def test_tokens_are_the_nearest_codes_also_in_parts(is_cosine, monkeypatch):
    torch.manual_seed(0)
    codebook = vqgan.Codebook(30, 5, is_cosine)
    latents = 0.01 * torch.randn(2, 5, 4, 4)
    scaled = F.normalize(latents, dim=1) if is_cosine else latents
    codes = F.normalize(codebook.vectors, dim=1) if is_cosine else codebook.vectors
    distances = (scaled[:, None] - codes[:, :, None, None]).square().sum(2)
    assert torch.equal(codebook.tokens(latents), distances.argmin(1))
    monkeypatch.setattr(vqgan, "SCORES", 100)  # three positions at once
    tokens = codebook.tokens(latents)
    assert torch.equal(tokens, distances.argmin(1))
    assert torch.equal(codebook.codes(tokens), codes[tokens].movedim(-1, 1))


@pytest.mark.parametrize("image_size", [2, 16, 24])
def test_any_multiple_of_the_factor_is_an_image_size(image_size):
    network = VQGAN(**{**SIZES, "image_size": image_size, "grid": image_size // 2})
    tokens = network.encode(torch.rand(2, 3, image_size, image_size))
    assert tokens.shape == (2, image_size // 2, image_size // 2)
    assert tokens.dtype == torch.int64
    images = network.decode(tokens)
    assert images.shape == (2, 3, image_size, image_size)
    assert images.min() >= 0
    assert images.max() <= 1


@pytest.mark.parametrize("codebook", ["nearest", "cosine", "gumbel"])
def test_tokens_of_latents_do_not_depend_on_autocast(codebook):
    torch.manual_seed(0)
    quantizer = VQGAN(**{**SIZES, "num_tokens": 400}, codebook=codebook).quantizer
    latents = torch.randn(8, 3, 8, 8)
    tokens = quantizer.tokens(latents)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.tokens(latents), tokens)


@pytest.mark.parametrize("codebook", ["nearest", "gumbel"])
def test_tokens_do_not_depend_on_autocast(codebook):
    torch.manual_seed(0)
    network = VQGAN(**SIZES, codebook=codebook)
    images = torch.rand(2, 3, 16, 16)
    tokens = network.encode(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network.encode(images), tokens)
        assert network.decode(tokens).dtype == torch.float32


def test_an_image_of_another_size_is_an_error():
    with pytest.raises(ValueError, match=r"expected images \[B, 3, 16, 16\]"):
        VQGAN(**SIZES).encode(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 20}, r"image_size=20 is not 2 times the grid=8.*such as image_size=16"),
        ({"groups": 3}, "groups=3 does not divide a width of 8"),
        ({"codebook": "euclid"}, "codebook=euclid is not possible: set one of nearest"),
        ({"pixels": "bytes"}, "pixels=bytes is not possible"),
        ({"spatial_norm": True}, "code_dim=3 and channels=8"),
        ({"widths": [8, 0]}, r"widths\.1=0"),
        ({"blocks": 0}, "blocks=0"),
        ({"widths": []}, "widths=.* is not possible"),
        ({"attention": [2]}, "attention=.* is not possible"),
    ],
)
def test_impossible_sizes_are_errors(changes, message):
    with pytest.raises(UserError, match=message):
        VQGAN(**{**SIZES, **changes})


def test_settings_that_change_the_tokens_are_in_the_identity_of_their_cache():
    settings = [{}, {"pixels": "unit"}, {"codebook": "cosine"}, {"groups": 2}]
    networks = [VQGAN(**{**SIZES, **changes}) for changes in settings]
    assert len({network.extra_repr() for network in networks}) == len(settings)


CODEBOOKS = ["nearest", "cosine", "gumbel", "moving average"]


def trainable(codebook):
    torch.manual_seed(0)
    if codebook == "moving average":
        network = VQGAN(**SIZES, quantizer=VectorQuantizer(40, channels=3))
    else:
        network = VQGAN(**SIZES, codebook=codebook)
    beta = 0.01 if codebook == "gumbel" else 1.0  # of the KL, or of distances from codes
    return DiscreteVAEModule(network, Constant(0.5), Constant(beta), Constant(3e-3))


@pytest.mark.parametrize("codebook", CODEBOOKS)
def test_every_codebook_trains(codebook):
    module = trainable(codebook)
    module.log = module.log_dict = lambda *args, **kwargs: None
    images = torch.rand(4, 3, 1, 1, generator=torch.Generator().manual_seed(1))
    images = images.expand(4, 3, 16, 16).contiguous()
    optimizer = torch.optim.AdamW(module.parameters(), 3e-3)
    before = module.network.decode(module.network.eval().encode(images)).sub(images).abs().mean()
    module.train()
    for _ in range(120):
        optimizer.zero_grad()
        module.training_step({"image": images}, 0).backward()
        optimizer.step()
    after = module.network.decode(module.network.eval().encode(images)).sub(images).abs().mean()
    assert after < 0.5 * before


@pytest.mark.parametrize("is_cosine", [False, True])
def test_a_codebook_moves_to_its_latents_and_passes_gradients_to_the_encoder(is_cosine):
    torch.manual_seed(0)
    codebook = vqgan.Codebook(6, 3, is_cosine)
    latents = torch.randn(2, 3, 4, 4, requires_grad=True)
    codes, penalties = codebook(latents, 1.0)
    torch.testing.assert_close(codes, codebook.codes(codebook.tokens(latents)))
    scaled = F.normalize(latents, dim=1) if is_cosine else latents
    distance = (codes - scaled).square().sum(1).mean()
    torch.testing.assert_close(penalties["codebook"], distance)
    torch.testing.assert_close(penalties["commitment"], 0.25 * distance)
    sum(penalties.values()).backward(retain_graph=True)
    used = torch.zeros(6, dtype=torch.bool)
    used[codebook.tokens(latents)] = True
    assert torch.equal(codebook.vectors.grad.abs().sum(1) > 0, used)
    latents.grad = None
    weights = torch.randn_like(codes)
    (codes * weights).sum().backward()
    if not is_cosine:  # straight through
        torch.testing.assert_close(latents.grad, weights)
    assert latents.grad.abs().sum() > 0


def test_a_quantizer_of_other_sizes_is_refused():
    with pytest.raises(UserError, match="num_tokens=40 or code_dim=3 differs from the quantizer"):
        VQGAN(**SIZES, quantizer=VectorQuantizer(40, channels=5))


def test_any_likelihood_gives_images():
    network = VQGAN(**SIZES, likelihood=LogitLaplace())
    images = torch.rand(2, 3, 16, 16)
    maps = network.maps(network.quantizer.codes(network.encode(images)))
    assert maps.shape == (2, 6, 16, 16)
    assert network.decode(network.encode(images)).shape == images.shape
