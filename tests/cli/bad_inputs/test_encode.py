"""Data and settings that cannot be encoded: one line, and nothing is written."""

import pytest

from helpers.bad_inputs import SOURCE, assert_refused, write_images, write_tars
from helpers.command import SMALL

# name: (arguments, a function that makes the input bad, parts of the message)
CASES = {
    "no number of processes": (["processes=null"], None, ["processes=null is not a"]),
    "word as a list": (["splits=train"], None, ["not a list: write splits=[train]"]),
    "encoding of images without a size": (
        ["data.image_size=null"],
        None,
        ["data.image_size=null is not possible"],
    ),
    "encode without a dVAE": (["data=emoji"], None, ["data=emoji", "stage=dvae"]),
    "encode with 0 processes": (["processes=0"], None, ["processes=0"]),
    "word as a number of processes": (["processes=x"], None, ["processes=x is not a"]),
    "encode a streaming data set": (
        ["dvae={dvae}", "data=webdataset", SOURCE, "data.image_size=32"],
        lambda h: write_tars(h, "1.jpg", "1.txt", "2.jpg", "2.txt"),
        ["streaming=false"],
    ),
    "encode a missing split": (["splits=[nope]", *SMALL[1:4]], None, ["no split nope"]),
    "encode into a file": (
        ["data.cache={files}/0.txt", *SMALL[1:4]],
        write_images,
        ["cannot be written"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_writes_nothing(case, home):
    assert_refused(home, "encode", *CASES[case])
