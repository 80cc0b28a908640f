"""Runs, metrics and settings that cannot be measured: one line, and nothing is written."""

import pytest

from helpers.bad_inputs import assert_refused, change_config, write_file

# name: (arguments, a function that makes the input bad, parts of the message)
CASES = {
    "data that would run code": (
        ["metric=reconstruction", "device=cpu"],
        lambda h: change_config(h.dvae / "config.yaml", data__source={"_target_": "os.system"}),
        ["data.source", "os.system"],
    ),
    "data without a name": (["metric=fid", "data.source.validation=20"], None, ["add data=NAME"]),
    "list as a run": (
        ["metric=fid", "run={dvae},{prior}"],
        None,
        ["there is no run", "(for several, repeat the key: run={dvae} run={prior})"],
    ),
    "word as a scale": (["metric=alignment", "guidance=x"], None, ["guidance=x is not"]),
    "unknown device": (["metric=reconstruction", "device=tpu9"], None, ["device=tpu9"]),
    "ranker of another metric": (
        ["metric=fid", "ranker.run={ranker}"],
        None,
        ["ranker.run= has no effect on metric=fid"],
    ),
    "resize of another metric": (
        ["metric=alignment,retrieval", "resize=legacy_pytorch"],
        None,
        ["resize= has no effect on metric=alignment,retrieval"],
    ),
    "network of another metric": (
        ["metric=alignment", "extractor=efficientnet_lite1"],
        None,
        ["extractor= has no effect on metric=alignment"],
    ),
    "unknown network": (
        ["metric=fid", "extractor=resnet"],
        None,
        ["extractor=resnet is not possible: set one of auto, inception, efficientnet_lite0"],
    ),
    "setting of one metric among several": (
        ["metric=alignment,fid", "resize=legacy_pytorch", "images=0"],
        None,
        ["images=0 is not possible"],
    ),
    "repeated metric": (
        ["metric=fid", "metric=kid"],
        None,
        ["metric=kid replaces metric=fid: for several, set metric=fid,kid"],
    ),
    "setting of another metric in quotes": (
        ["metric='retrieval'", "temperature=0.5"],
        None,
        ["temperature= has no effect on metric='retrieval'"],
    ),
    "images of another size": (
        ["metric=reconstruction", "data=shapes", "data.image_size=64"],
        None,
        ["data.image_size=64 does not fit {dvae}, whose images have 32 pixels"],
    ),
    "images of another size than a model's": (
        ["metric=reconstruction", "run={prior}/dvae", "data=shapes", "data.image_size=64"],
        None,
        ["data.image_size=64 does not fit {prior}/dvae"],
    ),
    "no image to measure": (["metric=fid", "images=0"], None, ["images=0 is not possible"]),
    "file in the place of results": (
        ["metric=reconstruction"],
        lambda h: write_file(h.dvae / "eval" / "reconstruction"),
        ["eval/reconstruction is a file in the place of a folder: move or delete it"],
    ),
    "file in the place of all results": (
        ["metric=reconstruction"],
        lambda h: write_file(h.dvae / "eval"),
        ["first/eval is a file in the place of a folder: move or delete it"],
    ),
    "unknown metric": (["metric=nope"], None, ["metric/nope", "fid"]),
    "metric of another stage": (["metric=fid", "run={dvae}"], None, ["stage=dvae"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_writes_nothing(case, home):
    assert_refused(home, "eval", *CASES[case])
