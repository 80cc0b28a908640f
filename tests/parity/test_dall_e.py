"""The dVAE against the modules that the paper's authors released (PyPI DALL-E)."""

import pytest
import torch

from tilewright.dvae import DiscreteVAE
from tilewright.dvae.losses import map_pixels, unmap_pixels

dall_e = pytest.importorskip("dall_e")


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    encoder = dall_e.Encoder(n_hid=64, vocab_size=512)
    decoder = dall_e.Decoder(n_hid=64, vocab_size=512)
    ours = DiscreteVAE(image_size=64, grid=8, num_tokens=512, n_hid=64).eval()
    with torch.no_grad():
        for theirs, mine in ((encoder, ours.encoder), (decoder, ours.decoder)):
            for a, b in zip(theirs.parameters(), mine.parameters(), strict=True):
                assert a.shape == b.shape
                if a.ndim == 1:  # biases are zero at first
                    a.copy_(torch.randn_like(a))
                b.copy_(a)
    return encoder, decoder, ours


@torch.no_grad()
def test_the_encoders_logits_are_the_released_modules(networks):
    encoder, _, ours = networks
    images = torch.rand(2, 3, 64, 64)
    expected = encoder(dall_e.map_pixels(images))
    assert expected.std() > 0.1
    torch.testing.assert_close(ours.latents(images), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(ours.encode(images), expected.argmax(dim=1))


@torch.no_grad()
def test_the_decoders_maps_and_picture_are_the_released_modules(networks):
    _, decoder, ours = networks
    tokens = torch.randint(512, (2, 8, 8))
    codes = ours.quantizer.codes(tokens)
    expected = decoder(codes)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours.decoder(codes), expected, rtol=1e-5, atol=1e-5)
    picture = dall_e.unmap_pixels(torch.sigmoid(expected[:, :3]))
    torch.testing.assert_close(ours.decode(tokens), picture, rtol=0, atol=1e-5)


def test_the_pixel_maps_are_the_released_ones():
    images = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(map_pixels(images), dall_e.map_pixels(images))
    mapped = map_pixels(images)
    torch.testing.assert_close(unmap_pixels(mapped), dall_e.unmap_pixels(mapped))


def test_parameters_at_full_size_are_as_many():
    meta = torch.device("meta")
    theirs = [
        sum(p.numel() for p in module(device=meta).parameters())
        for module in (dall_e.Encoder, dall_e.Decoder)
    ]
    with meta:
        network = DiscreteVAE()
    ours = [
        sum(p.numel() for p in module.parameters()) for module in (network.encoder, network.decoder)
    ]
    assert ours == theirs
    assert ours == pytest.approx([53.8e6, 43.8e6], rel=2e-3)
