"""Tests of Fréchet and kernel distances against independent computations."""

import logging

import numpy as np
import pytest
import torch
from cleanfid import fid
from torch import nn
from torchmetrics.image.kid import KernelInceptionDistance

from tilewright.errors import UserError
from tilewright.metrics.distances import frechet_distance, kernel_distance, resolve_subsets
from tilewright.metrics.features import UndefinedMetric

D = 6


def normal(count: int, seed: int = 0, shift: float = 0) -> np.ndarray:
    """Returns correlated normal features [count, D]."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, D)) @ rng.normal(size=(D, D)) + shift


def whitened(count: int) -> np.ndarray:
    """Returns features [count, D] with mean 0 and covariance I, exactly."""
    features = normal(count)
    features = features - features.mean(0)
    left, _, _ = np.linalg.svd(features, full_matrices=False)
    return left * np.sqrt(count - 1)


def by_singular_values(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the Fréchet distance by singular values, in float64.

    tr (S S')^½ is the sum of the singular values of A B^T, where S = A^T A and S' = B^T B.
    """
    a = (first - first.mean(0)) / np.sqrt(len(first) - 1)
    b = (second - second.mean(0)) / np.sqrt(len(second) - 1)
    shift = first.mean(0) - second.mean(0)
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(shift @ shift + (a**2).sum() + (b**2).sum() - 2 * cross)


def by_pairs(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the unbiased squared MMD of Binkowski et al. 2018, summed over pairs."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    n, m = len(x), len(y)
    within_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_x + within_y - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


def test_frechet_distance_agrees_with_singular_values() -> None:
    first, second = normal(50), normal(40, seed=1, shift=1)
    expected = by_singular_values(first, second)
    assert expected > 1
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_of_equal_and_of_shifted_sets() -> None:
    features, shift = normal(50), np.arange(D)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(features, features + shift) == pytest.approx(shift @ shift)


def test_frechet_distance_between_diagonal_gaussians() -> None:
    first, second = np.arange(1.0, D + 1), np.arange(D, 0.0, -1)
    features = whitened(100)
    distance = frechet_distance(features * np.sqrt(first), features * np.sqrt(second))
    assert distance == pytest.approx(((np.sqrt(first) - np.sqrt(second)) ** 2).sum())


def test_too_few_images_are_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    enough, few = normal(D), normal(D - 1)
    frechet_distance(enough, enough)
    assert not caplog.records
    for _ in range(2):
        frechet_distance(enough, few)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "6 real and 5 generated images, fewer than the 6 features" in record.getMessage()


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_a_single_image_is_refused(distance) -> None:
    with pytest.raises(UserError, match="2 images or more in each set, got 1"):
        distance(normal(5), normal(1))


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(distance, value: float) -> None:
    broken = normal(20)
    broken[3, 2] = value
    with pytest.raises(UndefinedMetric, match="not finite"):
        distance(normal(20), broken)


def test_a_distance_with_a_complex_root_is_undefined(monkeypatch) -> None:
    # clean-fid raises this if rounding makes the product of two covariances indefinite.
    monkeypatch.setattr("scipy.linalg.sqrtm", lambda matrix, disp: (matrix + 1j, 0.0))
    with pytest.raises(UndefinedMetric, match=r"Imaginary component 1\.0.*measure more images"):
        frechet_distance(normal(20), normal(20, seed=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(({"subset_size": n}, f"subset_size={n} is not possible: set a whole number of 2 or more")
          for n in (1, 0, -1, 2.5)),
        *(({"subsets": n}, f"subsets={n} is not possible: set a whole number of 1 or more")
          for n in (0, -1, 1.5)),
        ({"subset_size": True}, "subset_size=true is not possible"),
        ({"subsets": True}, "subsets=true is not possible"),
    ],
)  # fmt: skip
def test_impossible_subsets_are_refused(settings, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        kernel_distance(normal(20), normal(20), **settings)


def test_subsets_are_at_most_as_large_as_the_smaller_set() -> None:
    assert resolve_subsets(20, 20, subsets=5, subset_size=10) == (5, 10)
    assert resolve_subsets(20, 20, subsets=5, subset_size=20) == (1, 20)
    assert resolve_subsets(20, 20, subsets=5, subset_size=99) == (1, 20)
    assert resolve_subsets(20, 30, subsets=5, subset_size=99) == (5, 20)


def test_a_kernel_distance_of_few_images_is_warned_about(caplog) -> None:
    kernel_distance(normal(100), normal(100, seed=1))
    assert not caplog.records
    kernel_distance(normal(99), normal(100, seed=1))
    assert "99 real and 100 generated images, fewer than 100" in caplog.text


@pytest.mark.filterwarnings("ignore:.*will save all extracted features")
def test_kernel_distance_agrees_with_pairs_and_torchmetrics() -> None:
    first, second = normal(20), normal(20, seed=1, shift=0.5)
    ours = kernel_distance(first, second)
    assert ours == pytest.approx(by_pairs(first, second), rel=1e-10)
    theirs = KernelInceptionDistance(nn.Identity(), subsets=1, subset_size=20)
    theirs.update(torch.from_numpy(first), real=True)
    theirs.update(torch.from_numpy(second), real=False)
    assert ours == pytest.approx(float(theirs.compute()[0]), rel=1e-5)


def test_kernel_distance_is_the_mean_over_seeded_subsets() -> None:
    first, second = normal(30), normal(25, seed=1)
    np.random.seed(7)
    expected = fid.kernel_distance(first, second, 5, 10)
    before = np.random.get_state()
    ours = kernel_distance(first, second, subsets=5, subset_size=10, seed=7)
    assert ours == expected
    for old, new in zip(before, np.random.get_state(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert ours != kernel_distance(first, second, subsets=5, subset_size=10, seed=8)


def test_kernel_distance_is_unbiased() -> None:
    """The mean over many pairs of small sets from one distribution is zero."""
    rng = np.random.default_rng(0)
    values = [kernel_distance(*rng.normal(size=(2, 10, D))) for _ in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20
    assert min(values) < 0 < max(values)


def test_kernel_distance_uses_one_subset_if_it_holds_all_images() -> None:
    first, second = normal(20), normal(20, seed=1)
    np.random.seed(0)
    repeated = fid.kernel_distance(first, second, 100, 1000)
    assert kernel_distance(first, second, subsets=100) == pytest.approx(repeated, rel=1e-10)
    # With sets of two sizes, subsets of the larger one differ.
    assert kernel_distance(first, normal(30, seed=1), subsets=2) != pytest.approx(
        kernel_distance(first, normal(30, seed=1), subsets=1), rel=1e-6
    )
