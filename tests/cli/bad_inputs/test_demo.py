"""Settings of the playground that are not possible: one line, and nothing is written."""

import pytest

from helpers.bad_inputs import assert_refused

# name: (arguments, a function that makes the input bad, parts of the message)
CASES = {
    "word as a port": (["port=x"], None, ["port=x is not a whole number"]),
    "port above the limit": (["port=99999"], None, ["port=99999 is not possible"]),
    "no image to show": (["n=0"], None, ["n=0 is not possible"]),
    "no row of an image": (["rows=0"], None, ["rows=0 is not possible"]),
    "word as a number of candidates": (["best_of=x"], None, ["best_of=x is not possible"]),
    "fewer candidates than images": (["n=4", "best_of=2"], None, ["best_of=2 is smaller than n=4"]),
    "page of a negative temperature": (
        ["temperature=-1"],
        None,
        ["temperature=-1 is not possible"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_writes_nothing(case, home):
    assert_refused(home, "demo", *CASES[case])
