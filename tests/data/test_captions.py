"""Captions among stored values, and the reasons for skipping other values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.data.captions import find_captions
from tilewright.data.filters import usable_captions
from tilewright.data.skipping import SkipRow


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        *((missing, "no caption") for missing in (None, [], float("nan"), "nan", " None ", "<NA>")),
        *(
            (text, "empty caption")
            for text in ("", " \n", "\u200b\ufeff", "\0\x07", "\u00a0\u3000")
        ),
        *((value, "caption is not text") for value in (7, 7.5, True, {}, {"en": "a"}, [["a"]])),
        ("a \ud83d", "caption is not text"),
        (b"\xff", "caption is in an unknown encoding"),
    ],
)
def test_other_values_are_not_captions(value, reason):
    texts, defects = find_captions(value)
    assert not texts
    assert defects == {reason: 1}
    with pytest.raises(SkipRow, match=reason):
        usable_captions(value)
    assert usable_captions(value, required=False) == [""]


@pytest.mark.parametrize(
    "text", ["7", "true", "{}", "nan bread", "日本語", "\U0001f468\u200d\U0001f469"]
)
def test_text_is_kept(text):
    assert find_captions(text) == ([text], {})


def test_captions_of_a_list_are_kept_in_order():
    texts, defects = find_captions(["b", None, " a\n", 7, "", {}, "nan"])
    assert texts == ["b", "a"]
    assert defects == {"no caption": 2, "caption is not text": 2, "empty caption": 1}


@given(st.lists(st.text() | st.none() | st.integers() | st.floats() | st.binary() | st.booleans()))
def test_each_value_is_a_caption_or_counted(values):
    texts, defects = find_captions(values)
    assert len(texts) + defects.total() == max(len(values), 1)
    for text in texts:
        assert text
        assert text.encode().decode() == text
