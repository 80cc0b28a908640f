"""Text files of any encoding and separator, and records in them."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilewright.errors import UserError
from tilewright.text_files import (
    decode_text,
    decode_texts,
    guess_encoding,
    parse_records,
    read_records,
    read_text,
    split_lines,
)

GERMAN = "ein grüner Kreis über dem Haus"
LEGACY = ("cp1252", "cp1251", "cp932", "gb18030", "big5", "mac_roman")

captions = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).map(str.strip)


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", GERMAN),
        ("utf-8-sig", GERMAN),
        ("utf-16", "日本語の円"),
        ("utf-32", GERMAN),
        ("utf-16-le", "a red circle"),
        ("utf-16-be", GERMAN),
        ("cp1252", GERMAN),
        ("cp1252", "café"),
        ("cp1252", "une fenêtre à côté d’un mur, 10 € – “ok”"),
        ("cp932", "a red ball 赤い丸"),
        ("cp932", "日本語の円"),
        ("gb18030", "一只红色的圆"),
        ("big5", "紅色的圓"),
        ("cp949", "빨간 원과 파란 사각형"),
        ("cp1251", "красный круг"),
    ],
)
def test_encodings_are_detected(encoding, text, caplog):
    assert decode_text(text.encode(encoding), "a.txt") == text
    is_guess = not encoding.startswith("utf")
    assert (f"a.txt is not UTF-8 and is read as {encoding}" in caplog.text) == is_guess


def test_many_short_texts_are_guessed_together():
    texts = [text.encode("cp1250") for text in ("červený kruh", "żółty", "łąka", "niebieski")]
    assert guess_encoding(texts) == "cp1250"


@pytest.mark.parametrize(
    "data", [b"\xff\xd8\xff\xe0\x00\x10JFIF", b"\xff\xfea", bytes(range(256)), b"a,b\n1,a\0b\n"]
)
def test_bytes_that_are_not_text_are_an_error(data, tmp_path):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.txt is not text in any known encoding"):
        read_text(tmp_path / "a.txt")


def test_damaged_utf8_names_the_line():
    data = "grün\nblau über\nrot".encode().replace("ü".encode(), b"\xfc", 2)
    damaged = "größer\nschön\n".encode() + b"gr\xfcn"
    assert decode_text(data, "a.txt") == "grün\nblau über\nrot"
    with pytest.raises(UserError, match=r"a\.txt, line 3 is not valid UTF-8"):
        decode_text(damaged, "a.txt")


def test_unreadable_files_are_an_error(tmp_path):
    for path in (tmp_path, tmp_path / "none.txt"):
        with pytest.raises(UserError, match="cannot be read"):
            read_text(path)


@given(st.text(), st.sampled_from(LEGACY))
def test_no_bytes_become_replacement_characters(text, encoding):
    try:
        decoded = decode_text(text.encode(encoding, errors="ignore"), "a.txt")
    except UserError:
        return
    assert "\ufffd" not in decoded or "\ufffd" in text


@given(
    st.lists(st.sampled_from(["grün", "café", "à côté", "a red ball", "ÜBER", "l’été"]), min_size=1)
)
def test_western_words_are_read_as_cp1252(words):
    text = " ".join(words)
    assert decode_text(text.encode("cp1252"), "a.txt") == text


@given(st.lists(captions), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_records_of_json_lines_are_as_written(texts, encoding):
    lines = [json.dumps({"caption": text}, ensure_ascii=False) for text in texts]
    text = decode_text("\n".join(lines).encode(encoding), "a.jsonl")
    assert [record["caption"] for record in parse_records(text, ".jsonl", "a")] == texts


@pytest.mark.parametrize("columns", [1, 3])
@given(
    st.lists(captions.filter(bool)),
    st.sampled_from(",;\t|"),
    st.sampled_from([".csv", ".tsv"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_rows_of_a_table_are_as_written(columns, texts, separator, suffix, encoding):
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=separator)
    writer.writerows([["number", "said", "caption"][-columns:]])
    writer.writerows([str(n), "x, y", text][-columns:] for n, text in enumerate(texts))
    text = decode_text(file.getvalue().encode(encoding), "a")
    assert [record["caption"] for record in parse_records(text, suffix, "a")] == texts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prompt\na red, round circle", [{"prompt": "a red, round circle"}]),
        ("a;b\n1,5;x", [{"a": "1,5", "b": "x"}]),
        ("sep=|\na|b\n1|2", [{"a": "1", "b": "2"}]),
        ('a, b\n1, "x, y"', [{"a": "1", "b": "x, y"}]),
        ('a\tb\n1\t"hi" he said', [{"a": "1", "b": '"hi" he said'}]),
        ("a,b\n\n,\n1\n2,3,\n", [{"a": "1", "b": None}, {"a": "2", "b": "3"}]),
        ("", []),
    ],
)
def test_tables_of_several_forms_are_read(text, expected):
    assert list(parse_records(text, ".csv", "a.csv")) == expected


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "a,b\n1,2,3", "line 2 has 3 values for 2 columns"),
        ("a.csv", 'a,b\n1,"x\n3,4', "line 3 is malformed"),
        ("a.csv", "a,a\n1,2", "two columns 'a'"),
        ("a.jsonl", '{"a": 1}\n[1]', "line 2 is not a JSON object"),
        ("a.jsonl", "[" * 100_000, "line 1 is not a JSON object"),
    ],
)
def test_malformed_lines_are_an_error(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        list(read_records(tmp_path / name))
    assert name in str(caught.value)


def test_only_line_breaks_split_lines():
    assert split_lines("a\r\nb\rc\nd\u2028e\x85f") == ["a", "b", "c", "d\u2028e\x85f"]


def test_a_broken_file_does_not_change_the_encoding_of_the_others(caplog):
    damaged = "größer, schön, über".encode() + b"\xe4"
    contents = {
        Path("0"): b"\0\1\2", Path("1"): damaged, Path("2"): b"a\x07b\ngr\xfcn",
        Path("3"): "grün".encode("cp1252"), Path("4"): "blau".encode("utf-16"),
    }  # fmt: skip
    assert decode_texts(contents) == {Path("3"): "grün", Path("4"): "blau"}
    assert "1 of 5 text files are not UTF-8 and are read as cp1252, such as 3" in caplog.text
    del contents[Path("3")]
    assert decode_texts(contents) == {Path("4"): "blau"}
