"""Warnings about captions that are cut."""

from helpers.gray_model import CAPTIONS, make_tokenizer
from tilewright.data.truncation import truncation_warning


def test_the_warning_counts_the_captions_that_are_cut():
    tokenizer = make_tokenizer()
    caption = "a red circle a blue ring red circle blue ring"
    assert truncation_warning(tokenizer, CAPTIONS) is None
    two = truncation_warning(tokenizer, [*CAPTIONS, caption, caption])
    assert two.startswith(
        "2 captions are longer than 8 text tokens and cut: for example, one keeps"
    )
