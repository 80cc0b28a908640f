"""Captions from a file: prompts=FILE of generate."""

import io
import json
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from helpers.command import fail, images, run
from tilewright.cli import generate
from tilewright.cli.prompts import Prompt, read_prompts
from tilewright.errors import UserError

RECORDS = [{"caption": "a red ring", "image_id": 7, "size": 3}, {"caption": None, "image_id": 8}]


def write(folder, name, text, encoding="utf-8"):
    file = folder / name
    file.write_bytes(text.encode(encoding))
    return str(file)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_lines_in_any_encoding_are_read(tmp_path, caplog, encoding):
    text = "ein grüner Kreis\r\n\r\n  \r\n a, (b) \r\n"
    file = write(tmp_path, "captions.txt", text, encoding)
    assert read_prompts(file) == [
        Prompt("ein grüner Kreis", {"line": 1}),
        Prompt("a, (b)", {"line": 4}),
    ]
    (*_, message) = caplog.messages
    assert message.endswith("left out: 2 × empty caption, such as line 2")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", "\n".join(map(json.dumps, RECORDS))),
        ("a.csv", "image_id;caption;size\n7;a red ring;3\n8;;\n"),
        ("a.TSV", "caption\tsize\timage_id\na red ring\t3\t7\n\t\t8\n"),
    ],
)
def test_rows_keep_their_number_and_ids(tmp_path, caplog, name, text):
    (prompt,) = read_prompts(write(tmp_path, name, text))
    assert prompt.caption == "a red ring"
    origin = {key: int(value) for key, value in prompt.origin.items()}
    assert origin == {"row": 1, "image_id": 7}
    assert "such as row 2" in caplog.text


def test_a_column_is_detected_or_set(tmp_path):
    file = write(tmp_path, "a.csv", "text,title\na red ring,a blue star\n")
    assert read_prompts(file)[0].caption == "a red ring"
    assert read_prompts(file, "title")[0].caption == "a blue star"
    with pytest.raises(UserError, match="no column 'words', only text, title: set caption_column="):
        read_prompts(file, "words")
    several = write(tmp_path, "a.jsonl", json.dumps({"prompt": ["a ring", "a star"], "id": "x"}))
    assert read_prompts(several) == [
        Prompt("a ring", {"row": 1, "id": "x"}),
        Prompt("a star", {"row": 1, "id": "x"}),
    ]


@pytest.mark.parametrize(
    ("name", "text", "column", "message"),
    [
        ("a.txt", "\n\n", None, "a.txt has no captions"),
        ("a.csv", "caption\n", None, "a.csv has no captions"),
        ("a.csv", "name\nx\n", None, "no column 'caption' or 'text' or 'prompt', only name"),
        ("a.json", "[]", None, "a.json is not .txt, .jsonl, .csv, .tsv or -"),
        ("a.txt", "a ring", "text", "is not a table with columns: leave caption_column=text out"),
        ("a.jsonl", "{", None, "line 1 is not a JSON object"),
    ],
)
def test_file_without_captions_is_refused(tmp_path, name, text, column, message):
    with pytest.raises(UserError, match=message):
        read_prompts(write(tmp_path, name, text), column)


def test_images_of_a_file_are_those_of_its_captions(copied, tmp_path, monkeypatch):
    captions = ["a red ring", "a blue star", "a green square"]
    common = ["n=2", "device=cpu"]
    run(copied, "generate", *(f"prompt={c}" for c in captions), *common, f"out={tmp_path / 'a'}")
    stdin = io.BytesIO("\n".join(captions).encode())
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stdin))
    monkeypatch.setattr(generate, "GRID_CAPTIONS", 2)
    stdout = run(copied, "generate", "prompts=-", *common, f"out={tmp_path / 'b'}")
    assert "grid-002.png: 3 of 3 captions" in stdout
    expected, actual = images(tmp_path / "a"), images(tmp_path / "b")
    assert {name for name in actual if "grid" in name} == {"grid-000.png", "grid-002.png"}
    records = json.loads((tmp_path / "b" / "pictures.json").read_text())
    assert records["prompts"] == "-"
    assert [record["line"] for record in records["pictures"]] == [1, 1, 2, 2, 3, 3]
    plain = json.loads((tmp_path / "a" / "pictures.json").read_text())["pictures"]
    for record, other in zip(records["pictures"], plain, strict=True):
        assert record == {**other, "line": record["line"]}
        assert pixels(actual[record["file"]]) == pixels(expected[other["file"]])


def test_captions_of_all_grids_share_one_warning_of_their_cut(copied, monkeypatch, tmp_path):
    file = write(tmp_path, "captions.txt", "\n".join(f"{i} {'very ' * 200}" for i in range(5)))
    monkeypatch.setattr(generate, "GRID_CAPTIONS", 2)
    stdout = run(copied, "generate", f"prompts={file}", "n=1", f"out={tmp_path / 'out'}")
    assert stdout.count(" and drops ") == 1
    assert "5 captions are longer" in stdout


def pixels(png):
    return Image.open(io.BytesIO(png)).tobytes()


def test_prompt_and_prompts_exclude_each_other(home):
    line = fail(home, "generate", "prompt=a", "prompts=b.txt")
    assert "prompt= and prompts= are both set: leave one of them out" in line
    assert "cannot be read" in fail(home, "generate", f"prompts={home.folder}/no.txt")
