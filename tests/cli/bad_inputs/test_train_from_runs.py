"""Runs that a training cannot start from or continue: one line, and nothing is written."""

import shutil

import pytest

from helpers.bad_inputs import BEST, DVAE, LAST, PRIOR, assert_refused, truncate

# name: (arguments, a function that makes the input bad, parts of the message)
CASES = {
    "missing dVAE": (
        PRIOR,
        lambda h: shutil.rmtree(h.logs / "dvae"),
        ["no trained dvae", "stage=dvae"],
    ),
    "images without a size": (
        [*DVAE, "data.image_size=null"],
        None,
        ["data.image_size=null is not possible"],
    ),
    "dVAE of another size": ([*PRIOR, "data.image_size=16"], None, ["data.image_size=32"]),
    "prior instead of a dVAE": ([*PRIOR, "dvae={prior}"], None, ["stage=prior", "stage=dvae"]),
    "resume a missing run": ([*DVAE, "resume=/no"], None, ["no run /no"]),
    "resume a finished run": ([*DVAE, "resume=true"], None, ["all its 6 updates"]),
    "resume from a truncated checkpoint": (
        [*DVAE, "resume=true", "trainer.max_steps=2"],
        lambda h: truncate(h.dvae / LAST),
        ["last.ckpt cannot be read", "resume={dvae}/checkpoints/best.ckpt continues after"],
    ),
    "resume with only truncated checkpoints": (
        [*DVAE, "resume=true", "trainer.max_steps=2"],
        lambda h: (truncate(h.dvae / LAST), truncate(h.dvae / BEST)),
        ["last.ckpt cannot be read"],
    ),
    "resume without a checkpoint": (
        [*DVAE, "resume={dvae}"],
        lambda h: shutil.rmtree(h.dvae / "checkpoints"),
        ["no checkpoint"],
    ),
    "resume an exported model": (
        [*DVAE, "resume={prior}/dvae"],
        None,
        ["cannot be resumed", "init="],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_writes_nothing(case, home):
    assert_refused(home, "train", *CASES[case])
