"""Runs and settings that cannot be exported: one line, and nothing is written."""

import pytest

from helpers.bad_inputs import RED, assert_refused, change_config, remove_rankers

# name: (arguments, a function that makes the input bad, parts of the message)
CASES = {
    "no folder for a model": (["out=null"], None, ["out has no value"]),
    "export without a folder": ([], None, ["out has no value"]),
    "export to an existing folder": (["out={files}"], None, ["exists"]),
    "export a missing run": (["out={cache}/m", "run=/no"], None, ["no run /no"]),
    "export without a ranker": (
        ["out={cache}/m", "with_ranker=true"],
        remove_rankers,
        ["no trained ranker"],
    ),
    "export a dVAE with a ranker": (
        ["out={cache}/m", "run={dvae}", "with_ranker=true"],
        None,
        ["stage=dvae"],
    ),
    **{
        f"{argument} of a dVAE": (
            ["out={cache}/m", "run={dvae}", argument],
            None,
            [f"{argument.partition('=')[0]}= needs a prior"],
        )
        for argument in ("n=2", "captions=2", RED)
    },
    "export of a prior whose data cannot be read": (
        ["out={cache}/m"],
        lambda h: change_config(h.prior / "config.yaml", data__source__image_size=16),
        ["the data of ", " cannot be read (image_size=16 is too small", "set prompt=…"],
    ),
    "export of no caption": (["out={cache}/m", "captions=0"], None, ["captions=0 is not possible"]),
    "export of captions of two kinds": (
        ["out={cache}/m", RED, "captions=2"],
        None,
        ["prompt= and captions= are both set"],
    ),
    "sampling as an option": (
        ["out={cache}/m", "sampling=paper"],
        None,
        ["sampling.temperature=1 sampling.guidance=1"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_writes_nothing(case, home):
    assert_refused(home, "export", *CASES[case])
