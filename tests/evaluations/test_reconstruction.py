"""Tests of metric=reconstruction."""

import numpy as np
import pytest
import torch
from PIL import Image

from tilewright.data import image_tokenizer
from tilewright.dvae import DiscreteVAE
from tilewright.evaluations import features, reconstruction
from tilewright.evaluations.reconstruction import Reconstruction
from tilewright.metrics.distances import frechet_distance
from tilewright.metrics.extractors import Extractor

COUNT = 70


class Data:
    checker = None
    splits = ("validation",)

    def __init__(self, folder):
        self.cache = folder / "codes"
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(COUNT, 3, 16, 16, generator=generator)

    def examples(self, split, count):
        return [(image, "a caption") for image in self.images[:count]]


@pytest.fixture
def network(monkeypatch):
    torch.manual_seed(0)
    network = DiscreteVAE(image_size=16, grid=4, num_tokens=8, n_hid=8, n_init=8).eval()
    encode, network.batch_sizes = network.encode, []
    monkeypatch.setattr(
        network,
        "encode",
        lambda images: network.batch_sizes.append(len(images)) or encode(images),
    )
    monkeypatch.setattr(image_tokenizer, "BATCH_PIXELS", 32 * 16**2)
    monkeypatch.setattr(reconstruction.runs, "load_network", lambda run, device: network)
    means = lambda x: torch.cat([x.mean(dim=(2, 3)), x.std(dim=(2, 3))], dim=1)  # noqa: E731
    extractor = Extractor("means", 6, 16, "0123", torch.device("cpu"), means, torch.nn.Identity())
    monkeypatch.setattr(features, "load_extractor", lambda *_: extractor)
    return network


def measure(tmp_path, **settings):
    evaluation = Reconstruction(splits=["validation", "zeroshot"], **settings)
    data = Data(tmp_path)
    folder = tmp_path / "eval"
    return evaluation(tmp_path, data, seed=0, device="cpu", folder=folder), data


def test_metrics_of_pixels_codebook_and_distribution(network, tmp_path):
    results, data = measure(tmp_path)
    assert network.batch_sizes == [32, 32, 6]
    with torch.no_grad():
        tokens = network.encode(data.images)
        reconstructions = network.decode(tokens)
    values = {result.metric: result.value for result in results}
    assert set(values) == {
        "psnr",
        "ssim",
        "l1",
        "codebook_usage",
        "codebook_perplexity",
        "fd_means",
    }
    assert {(result.split, result.images) for result in results} == {("validation", COUNT)}
    assert values["l1"] == pytest.approx(
        float((reconstructions - data.images).abs().mean()), rel=1e-4
    )
    assert values["codebook_usage"] == len(tokens.unique()) / 8

    def channel_statistics(folder):
        files = sorted((tmp_path / "eval" / "validation" / folder).iterdir())
        pixels = np.stack([np.array(Image.open(file)) for file in files])
        assert len(pixels) == COUNT
        x = pixels.transpose(0, 3, 1, 2).astype(np.float64)
        return np.concatenate([x.mean((2, 3)), x.std((2, 3), ddof=0)], axis=1)

    # The PNG files hold the reconstructions, rounded to the nearest level.
    assert channel_statistics("reconstructed")[:, :3] == pytest.approx(
        reconstructions.mean((2, 3)).numpy() * 255, abs=0.5
    )
    # torch's standard deviation divides by n - 1.
    real, reconstructed = (
        channel_statistics(name) * np.array([1] * 3 + [np.sqrt(256 / 255)] * 3)
        for name in ("real", "reconstructed")
    )
    expected = frechet_distance(real, reconstructed)
    assert values["fd_means"] == pytest.approx(expected, rel=1e-4)
    assert (tmp_path / "eval" / "validation.png").is_file()
    (distance,) = [result for result in results if result.metric == "fd_means"]
    assert distance.settings == {
        "extractor": "means",
        "extractor_digest": "0123",
        "resize": "clean",
    }


def test_the_frechet_distance_is_optional(network, tmp_path):
    results, _ = measure(tmp_path, frechet=False, images=10)
    assert {result.metric for result in results} == {
        "psnr",
        "ssim",
        "l1",
        "codebook_usage",
        "codebook_perplexity",
    }
    assert {result.images for result in results} == {10}
