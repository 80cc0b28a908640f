"""Wilson's interval."""

import math

import pytest
from scipy.stats import binomtest

from tilewright.evaluations.alignment import wilson_interval


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (3, 10), (0, 50), (999, 1000)])
def test_agrees_with_scipy(successes, trials):
    theirs = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    ours = wilson_interval(successes, trials, z=1.959963984540054)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize("trials", [1, 8, 1000])
def test_holds_the_share_and_stays_a_share(trials):
    for successes in {0, trials // 2, trials}:
        low, high = wilson_interval(successes, trials)
        assert -1e-12 <= low <= successes / trials + 1e-12
        assert successes / trials - 1e-12 <= high <= 1 + 1e-12


def test_narrows_with_the_root_of_the_trials():
    widths = [high - low for low, high in (wilson_interval(n // 2, n) for n in (1000, 4000))]
    assert widths[0] / widths[1] == pytest.approx(math.sqrt(4), rel=0.01)
