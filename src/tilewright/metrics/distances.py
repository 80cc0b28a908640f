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

from tilewright.errors import UserError

logger = logging.getLogger(__name__)


def frechet_distance(real: np.ndarray, generated: np.ndarray) -> float:
    """Returns the squared Fréchet distance between Gaussians fitted to two sets of features.

    It is |mu - mu'|² + tr(S + S' - 2 (S S')^½), and FID if the features are Inception's. For two
    equal sets, rounding may give a few thousandths above or below zero.

    Args:
        real: features [N, D].
        generated: features [M, D].

    Raises:
        UserError: a set has fewer than two images.
    """
    _require_two(real, generated)
    _warn_if_few(len(real), len(generated), real.shape[1])
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        # clean-fid passes sqrtm an argument that scipy 1.18 removes, hence the pin of scipy.
        warnings.filterwarnings("ignore", message=".*`disp`", category=DeprecationWarning)
        # Few images make the matrix singular; `_warn_if_few` says so in better words.
        warnings.filterwarnings("ignore", message="Matrix is singular", category=LinAlgWarning)
        distance = fid.fid_from_feats(real, generated)
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
        subsets: number of random subsets to average over. If N = M <= `subset_size`, all subsets
            would be equal and one is used.
        subset_size: images per subset, sampled from each set without replacement.
        seed: seed of the subsets.

    Raises:
        UserError: a set has fewer than two images.
    """
    _require_two(real, generated)
    if len(real) == len(generated) <= subset_size:
        subsets = 1
    with _numpy_seeded(seed):
        return fid.kernel_distance(real, generated, subsets, subset_size)


def _require_two(*feature_sets: np.ndarray) -> None:
    count = min(map(len, feature_sets))
    if count < 2:
        raise UserError(
            f"a distance between distributions needs 2 images or more in each set, got {count}: "
            "raise images="
        )


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
