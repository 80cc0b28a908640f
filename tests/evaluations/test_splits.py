"""Splits that an evaluation measures."""

from types import SimpleNamespace

import pytest

from tilewright.errors import UserError
from tilewright.evaluations.splits import available_splits

DATA = SimpleNamespace(splits=["train", "validation"])


def test_splits_and_parts_that_exist_are_measured_and_others_named(caplog):
    names = ["zeroshot[1:]", "validation[1:]", "train"]
    assert available_splits(DATA, names) == ["validation[1:]", "train"]
    assert "no split zeroshot[1:]" in caplog.text


def test_no_split_that_exists_is_an_error():
    with pytest.raises(UserError, match=r"metric\.splits=\[test\] .*train, validation"):
        available_splits(DATA, "test")
