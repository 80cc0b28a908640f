"""Settings of a conversion that are not possible: one line, and nothing is written."""

import pytest

from helpers.bad_inputs import assert_refused

OPENAI = ["family=openai_dvae", "family.encoder=a", "family.decoder=b"]

# name: (arguments, a function that makes the input bad, parts of the message)
CASES = {
    "word as trust": (
        [*OPENAI, "out={cache}/m", "trust=yes"],
        None,
        ["trust=yes is not possible: set true or false"],
    ),
    "no family": (["out={cache}/m"], None, ["family= is missing: choose one of family=chameleon"]),
    "range of pixels": (
        ["family=diffusers_vq", "family.path=a", "out={cache}/m", "family.pixels=sined"],
        None,
        ["family.pixels=sined is not possible: set one of signed, unit"],
    ),
    "converted model in the place of a run": (
        [*OPENAI, "out={dvae}", "trust=true"],
        None,
        ["exists: name another folder"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_writes_nothing(case, home):
    assert_refused(home, "convert", *CASES[case])
