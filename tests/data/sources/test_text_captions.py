"""Captions in text files: one per line, or one per file."""

import logging

import pytest

from tilewright.data.sources.text_captions import lines_are_captions, split_captions
from tilewright.errors import UserError

CAPTIONS = [
    "a dog\na brown dog runs\ndog on grass",
    "A dog runs.\nA brown dog is on the grass.\nThere is a dog.",
    "a two\n\n  the number two  \n",
    "A red circle.\n\nA blue square on a table.",
    "a dog, running\nGermany, 1945",
    "Ein Hund läuft\nDer Hund, er läuft",
    "犬が走る\n茶色の犬",
    "Photo: a dog\nPhoto: a brown dog",
    "Dr. Smith and a dog\nMr. Jones",
]
TEXTS = [
    "A red circle on a table. It is large.\n\nLighting: soft",
    "Subject: a dog\nLighting: soft\nStyle: photo",
    "A red circle that lies on a\nlarge blue table.",
    "a red circle,\na blue square,\nand a ring",
    "The image shows:\n- a dog\n- a cat",
    "# Dog\n\nA dog runs.",
    "The image shows a dog. It is brown. It runs.\nThe grass is green. The sky is blue. It is day.",
    "A dog runs on the grass. It is brown.\n\nThe sky is blue. There are clouds.",
]


@pytest.mark.parametrize(
    ("text", "expected"), [*((t, True) for t in CAPTIONS), *((t, False) for t in TEXTS)]
)
def test_form_of_the_lines_decides(text, expected, caplog):
    caplog.set_level(logging.INFO)
    assert lines_are_captions("auto", {"'1.txt'": text, "'2.txt'": "a dog"}) == expected
    (record,) = caplog.records
    other = "one" if expected else "lines"
    assert f"such as '1.txt': data.source.captions_per_file={other}" in record.message


def test_files_of_one_line_need_no_decision(caplog):
    caplog.set_level(logging.INFO)
    lines_are_captions("auto", {"1": "A dog. It is brown. It runs.\n", "2": ""})
    assert not caplog.records


def test_the_majority_of_files_decides():
    files = dict(enumerate([*CAPTIONS[:2], TEXTS[0]]))
    assert lines_are_captions("auto", files)
    assert not lines_are_captions("auto", files | {3: TEXTS[1]})


def test_a_setting_other_than_auto_decides(caplog):
    assert lines_are_captions("lines", {"1": TEXTS[0]})
    assert not lines_are_captions("one", {"1": CAPTIONS[0]})
    with pytest.raises(UserError, match="captions_per_file=all is not possible: set it to auto"):
        lines_are_captions("all", {})


def test_texts_are_kept_exactly():
    text = " \nA dog.  It runs.\r\n\r\n  Lighting: soft\n"
    assert split_captions(text, per_line=True) == ["A dog.  It runs.", "Lighting: soft"]
    assert split_captions(text, per_line=False) == ["A dog.  It runs.\n\n  Lighting: soft"]
