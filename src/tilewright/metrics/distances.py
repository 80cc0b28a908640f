"""Distances between two sets of features, computed by clean-fid as published values are."""

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Iterator

import numpy as np
from cleanfid import fid
from scipy.linalg import LinAlgWarning

from tilewright.checks import check_whole
from tilewright.metrics.features import UndefinedMetric, check_finite

logger = logging.getLogger(__name__)

MIN_IMAGES_FOR_KERNEL = 100  # with fewer, chance changes the kernel distance more than the model


def frechet_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """Returns the squared Fréchet distance between Gaussians fitted to two sets of features.

    It is |mu - mu'|² + tr(S + S' - 2 (S S')^½), and FID if the features are Inception's. For two
    equal sets, rounding may give a few thousandths above or below zero.

    Args:
        real: features [N, D].
        generated: features [M, D].

    Raises:
        UndefinedMetric: a set has fewer than two images, a feature is not finite, or clean-fid
            finds no real root of S S'.
    """
    _check_features(real, generated)
    _warn_if_few(len(real), len(generated), real.shape[1])
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        # clean-fid passes sqrtm an argument that scipy 1.18 removes, hence the pin of scipy.
        warnings.filterwarnings("ignore", message=".*`disp`", category=DeprecationWarning)
        # Few images make the matrix singular; `_warn_if_few` says so in better words.
        warnings.filterwarnings("ignore", message="Matrix is singular", category=LinAlgWarning)
        try:
            distance = fid.fid_from_feats(real, generated)
        except ValueError as error:  # "Imaginary component": rounding of a nearly singular S S'
            raise UndefinedMetric(
                f"clean-fid cannot compute the Fréchet distance of these features ({error}): "
                "measure more images"
            ) from error
    if printed.getvalue():
        logger.info("clean-fid: %s", printed.getvalue().strip())
    return float(distance)


def kernel_distance(
    real: np.ndarray,
    generated: np.ndarray,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> float:
    """Returns the squared maximum mean discrepancy (MMD) between two sets of features.

    The kernel is (x·y / D + 1)³; the value is KID if the features are Inception's. The estimate is
    unbiased, so it can be negative. Unlike a Fréchet distance, it does not need N > D.

    Args:
        real: features [N, D].
        generated: features [M, D].
        subsets, subset_size: see `resolve_subsets`.
        seed: seed of the subsets.

    Raises:
        UndefinedMetric: a set has fewer than two images, or a feature is not finite.
        UserError: subsets or subset_size is not possible.
    """
    _check_features(real, generated)
    _warn_if_few_for_kernel(len(real), len(generated))
    subsets, subset_size = resolve_subsets(len(real), len(generated), subsets, subset_size)
    with _numpy_seeded(seed):
        return fid.kernel_distance(real, generated, subsets, subset_size)


def check_subsets(subsets: int, subset_size: int) -> None:
    """Checks the subsets of a kernel distance.

    Raises:
        UserError: a number is not possible.
    """
    check_whole("subsets", subsets)
    check_whole("subset_size", subset_size, 2)  # the unbiased estimate needs a pair


def resolve_subsets(real: int, generated: int, subsets: int, subset_size: int) -> tuple[int, int]:
    """Returns the number and the size of the subsets that a kernel distance averages over.

    Args:
        real, generated: number of images of each set.
        subsets: number of random subsets. If each subset would hold all images, one is used.
        subset_size: images per subset, sampled from each set without replacement. A subset holds
            at most all images of the smaller set.

    Raises:
        UserError: a number is not possible.
    """
    check_subsets(subsets, subset_size)
    size = min(subset_size, real, generated)
    return (1 if size == real == generated else subsets), size


def _check_features(*feature_sets: np.ndarray) -> None:
    count = min(map(len, feature_sets))
    if count < 2:
        raise UndefinedMetric(
            f"a distance between distributions needs 2 images or more in each set, got {count}: "
            "raise images=, or measure a split with more images"
        )
    check_finite(*feature_sets)


@contextlib.contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Seeds NumPy's global generator, which clean-fid uses, and restores its state afterwards."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)


@functools.cache  # warns once per pair of counts: a callback measures every few hundred updates
def _warn_if_few(real: int, generated: int, dimension: int) -> None:
    if min(real, generated) < dimension:
        logger.warning(
            "Fréchet distance on %d real and %d generated images, fewer than the %d features: the "
            "value is biased upwards. Compare it only with values on equally many images",
            real,
            generated,
            dimension,
        )


@functools.cache
def _warn_if_few_for_kernel(real: int, generated: int) -> None:
    if min(real, generated) < MIN_IMAGES_FOR_KERNEL:
        logger.warning(
            "Kernel distance on %d real and %d generated images, fewer than %d: the value is "
            "mostly chance. Raise images=",
            real,
            generated,
            MIN_IMAGES_FOR_KERNEL,
        )
