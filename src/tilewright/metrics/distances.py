"""Distances between two sets of features: clean-fid's own, which is what published figures use."""

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
    """Between Gaussians fitted to features [N, D] and [M, D], a square (FID on Inception's):
    |mu - mu'|² + tr(S + S' - 2 (S S')^½).

    Rounding may leave that of two equal sets a few thousandths off zero, on either side.

    Raises `UserError` for fewer than two pictures.
    """
    _check_two(real, generated)
    _warn_if_few(len(real), len(generated), real.shape[1])
    printed = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
        # clean-fid calls scipy's sqrtm with an argument that scipy 1.18 drops: hence our pin. And
        # with few images the matrix is singular, which is what our own warning is about.
        warnings.filterwarnings("ignore", message=".*`disp`", category=DeprecationWarning)
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
    """The squared maximum mean discrepancy of features [N, D] and [M, D] (KID on Inception's).

    With the kernel (x·y / D + 1)³, estimated without bias, and so below zero at times; the mean
    over random subsets. It needs no more pictures than features, as a Fréchet distance does.

    Args:
        subsets: how many; where both sets are no larger than `subset_size` there is only one.
        subset_size: pictures drawn from each set, without putting back.
        seed: of the draws.

    Raises `UserError` for fewer than two pictures.
    """
    _check_two(real, generated)
    if max(len(real), len(generated)) <= subset_size and len(real) == len(generated):
        subsets = 1  # every one of them would be the whole set
    with _numpy_seeded(seed):
        return fid.kernel_distance(real, generated, subsets, subset_size)


def _check_two(*sets: np.ndarray) -> None:
    fewest = min(map(len, sets))
    if fewest < 2:
        raise UserError(
            f"a distance between distributions takes two pictures or more, got {fewest}"
        )


@contextlib.contextmanager
def _numpy_seeded(seed: int) -> Iterator[None]:
    """Seeds NumPy's global generator, which clean-fid draws from, and puts it back afterwards."""
    before = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(before)


@functools.cache  # once for each pair of counts: a callback asks every few hundred steps
def _warn_if_few(real: int, generated: int, dimension: int) -> None:
    if min(real, generated) < dimension:
        logger.warning(
            "Fréchet distance on %d real and %d generated images, fewer than the %d features: the "
            "figure is biased upwards; compare it only with figures on equally many images",
            real,
            generated,
            dimension,
        )
