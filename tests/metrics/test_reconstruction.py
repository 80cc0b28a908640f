"""Tests of reconstruction metrics and codebook usage against independent computations."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from tilewright.metrics.reconstruction import CodebookUsage, ReconstructionMetrics


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the SSIM of Wang et al. 2004 for one channel [H, W] in [0, 1], border mirrored."""

    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, sigma=1.5, radius=5, mode="mirror")

    c1, c2 = 0.01**2, 0.03**2
    m1, m2 = blur(first), blur(second)
    v1, v2 = blur(first**2) - m1**2, blur(second**2) - m2**2
    cov = blur(first * second) - m1 * m2
    similar = (2 * m1 * m2 + c1) * (2 * cov + c2) / ((m1**2 + m2**2 + c1) * (v1 + v2 + c2))
    return float(similar.mean())


def test_psnr_is_the_mean_over_images() -> None:
    images = torch.full((2, 3, 16, 16), 0.5)
    reconstructions = images.clone()
    reconstructions[0] += 0.1  # mean squared error 10^-2: 20 dB
    reconstructions[1] += 0.01  # 10^-4: 40 dB
    metrics = ReconstructionMetrics()
    metrics.update(reconstructions, images)
    values = metrics.compute()
    assert values["psnr"] == pytest.approx(30, abs=1e-3)
    assert values["l1"] == pytest.approx(0.055, abs=1e-6)


def test_metrics_agree_with_numpy_over_uneven_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 3, 16, 20, generator=generator)
    reconstructions = (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    metrics = ReconstructionMetrics(prefix="val/")
    for part in (slice(0, 4), slice(4, 5)):
        metrics.update(reconstructions[part], images[part])
    values = metrics.compute()
    x, y = images.double().numpy(), reconstructions.double().numpy()
    errors = ((x - y) ** 2).mean(axis=(1, 2, 3))
    similar = [[ssim(x[i, c], y[i, c]) for c in range(3)] for i in range(5)]
    assert set(values) == {"val/psnr", "val/ssim", "val/l1"}
    assert values["val/psnr"] == pytest.approx(float((-10 * np.log10(errors)).mean()), rel=1e-5)
    assert values["val/ssim"] == pytest.approx(float(np.mean(similar)), abs=1e-4)
    assert values["val/l1"] == pytest.approx(float(np.abs(x - y).mean()), rel=1e-5)


def test_channels_last_images_give_the_same_metrics() -> None:
    torch.manual_seed(0)
    images, reconstructions = torch.rand(2, 4, 3, 16, 16)
    metrics_by_layout = []
    for layout in (torch.contiguous_format, torch.channels_last):
        metrics = ReconstructionMetrics()
        metrics.update(reconstructions.to(memory_format=layout), images.to(memory_format=layout))
        metrics_by_layout.append(metrics.compute())
    contiguous, channels_last = metrics_by_layout
    for name, value in contiguous.items():
        torch.testing.assert_close(channels_last[name], value)


def test_bf16_reconstructions_are_measured_in_fp32() -> None:
    images = 0.85 + 0.1 * torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    reconstructions = (images + 0.01).bfloat16()
    half, full = ReconstructionMetrics(), ReconstructionMetrics()
    half.update(reconstructions, images)
    full.update(reconstructions.float(), images)
    assert half.compute() == full.compute()


def test_metrics_of_a_perfect_reconstruction() -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    metrics = ReconstructionMetrics()
    metrics.update(images, images)
    values = metrics.compute()
    assert math.isinf(values["psnr"])
    assert values["ssim"] == pytest.approx(1)
    assert values["l1"] == 0


@pytest.mark.parametrize(
    ("tokens", "usage", "perplexity"),
    [
        ([[[0, 1], [2, 3]]], 0.5, 4.0),
        ([[[7, 7], [7, 7]]], 0.125, 1.0),
        ([[[0, 0], [0, 1]]], 0.25, math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))),
    ],
)
def test_codebook_usage_of_known_tokens(
    tokens: list[list[list[int]]], usage: float, perplexity: float
) -> None:
    metric = CodebookUsage(num_tokens=8)
    metric.update(torch.tensor(tokens))
    values = metric.compute()
    assert values["usage"] == pytest.approx(usage)
    assert values["perplexity"] == pytest.approx(perplexity)


def test_codebook_usage_adds_up_over_batches_and_processes() -> None:
    tokens = torch.randint(0, 16, (6, 4, 4), generator=torch.Generator().manual_seed(0))
    single, first, second = (CodebookUsage(16) for _ in range(3))
    single.update(tokens)
    for batch in tokens[:4].split(2):
        first.update(batch)
    second.update(tokens[4:])
    first.merge_state(second)  # the reduction over processes
    assert single.compute() == first.compute()
    single.reset()
    single.update(torch.zeros(1, 2, 2, dtype=torch.long))
    assert single.compute()["perplexity"] == 1


def test_a_token_outside_the_codebook_is_an_error() -> None:
    with pytest.raises(ValueError, match="token 8 is outside the codebook of 8"):
        CodebookUsage(8).update(torch.tensor([[[8]]]))
