"""The dVAE equals the modules that the paper's authors released (PyPI DALL-E)."""

import pytest
import torch

from tilewright.dvae import DiscreteVAE
from tilewright.dvae.losses import map_pixels, unmap_pixels

dall_e = pytest.importorskip("dall_e")


@pytest.fixture(scope="module")
def networks():
    """Returns the released encoder and decoder, and a dVAE with the same weights."""
    torch.manual_seed(0)
    encoder = dall_e.Encoder(n_hid=64, vocab_size=512)
    decoder = dall_e.Decoder(n_hid=64, vocab_size=512)
    dvae = DiscreteVAE(image_size=64, grid=8, num_tokens=512, n_hid=64).eval()
    with torch.no_grad():
        for released, copy in ((encoder, dvae.encoder), (decoder, dvae.decoder)):
            for source, target in zip(released.parameters(), copy.parameters(), strict=True):
                assert source.shape == target.shape
                if source.ndim == 1:  # biases are initialized to zero
                    source.copy_(torch.randn_like(source))
                target.copy_(source)
    return encoder, decoder, dvae


@torch.no_grad()
def test_encoder_logits_equal_the_released_encoder(networks):
    encoder, _, dvae = networks
    images = torch.rand(2, 3, 64, 64)
    expected = encoder(dall_e.map_pixels(images))
    assert expected.std() > 0.1
    torch.testing.assert_close(dvae.latents(images), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(dvae.encode(images), expected.argmax(dim=1))


@torch.no_grad()
def test_decoder_outputs_and_images_equal_the_released_decoder(networks):
    _, decoder, dvae = networks
    tokens = torch.randint(512, (2, 8, 8))
    codes = dvae.quantizer.codes(tokens)
    expected = decoder(codes)
    assert expected.std() > 0.1
    torch.testing.assert_close(dvae.decoder(codes), expected, rtol=1e-5, atol=1e-5)
    images = dall_e.unmap_pixels(torch.sigmoid(expected[:, :3]))
    torch.testing.assert_close(dvae.decode(tokens), images, rtol=0, atol=1e-5)


def test_pixel_maps_equal_the_released_functions():
    images = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(map_pixels(images), dall_e.map_pixels(images))
    mapped = map_pixels(images)
    torch.testing.assert_close(unmap_pixels(mapped), dall_e.unmap_pixels(mapped))


def test_default_size_has_the_released_number_of_parameters():
    meta = torch.device("meta")
    released = [
        sum(p.numel() for p in module(device=meta).parameters())
        for module in (dall_e.Encoder, dall_e.Decoder)
    ]
    with meta:
        dvae = DiscreteVAE()
    actual = [
        sum(p.numel() for p in module.parameters()) for module in (dvae.encoder, dvae.decoder)
    ]
    assert actual == released
    assert actual == pytest.approx([53.8e6, 43.8e6], rel=2e-3)
