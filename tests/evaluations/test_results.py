"""Figures with what is needed to repeat them, in their three places."""

import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tilewright.evaluations.results import Result, log, show, write

FID = Result("fid", 12.5, "validation", 100, {"extractor": "inception", "resize": "clean"})
PSNR = Result("psnr", 20.0, "zeroshot", 50, {})
COMMON = {"run": "/logs/prior/a", "data": "shapes", "seed": 3}


def test_every_figure_has_all_keys(tmp_path):
    path = write([FID, PSNR], tmp_path / "eval" / "fid", **COMMON)
    assert path == tmp_path / "eval" / "fid" / "results.json"
    rows = json.loads(path.read_text())
    assert len(rows) == 2
    for row in rows:
        keys = {"metric", "value", "split", "images", "seed", "run", "data"}
        keys |= {"extractor", "extractor_digest", "resize"}
        assert keys <= set(row)
    assert rows[0]["extractor"] == "inception"
    assert rows[0]["resize"] == "clean"
    assert rows[0]["seed"] == 3
    assert rows[1]["extractor"] is None  # no feature network had a part in it
    assert rows[1]["value"] == 20.0


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_infinities_are_json_all_the_same(tmp_path, value):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    path = write([Result("psnr", value, "validation", 1, {})], tmp_path, **COMMON)
    (row,) = json.loads(path.read_text(), parse_constant=refuse)
    assert row["value"] == str(value)


def test_table_has_columns_for_what_differs_and_a_line_for_what_does_not(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    sharp, blurred = (
        Result("fid", value, "validation", 100, {"blur": blur, "resize": "clean", "top_k": None})
        for value, blur in ((12.5, 0), (11.5, 4))
    )
    show([sharp, blurred], "fid of a")
    title, _, header, *_, caption = capsys.readouterr().out.rstrip().splitlines()
    assert title.strip() == "fid of a"
    assert header.split() == ["metric", "value", "split", "images", "blur"]
    assert caption.strip() == "resize=clean"


def test_table_shows_intervals_and_figures_of_several_kinds(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    show([FID, PSNR, Result("share", 0.5, "zeroshot", 5, {"interval": [0.1, 0.9]})], "all of a")
    shown = capsys.readouterr().out
    for part in ("12.5", "validation", "inception", "clean", "psnr", "zeroshot", "[0.1, 0.9]"):
        assert part in shown


def test_figures_stand_beside_the_curves_of_training(tmp_path):
    one, two, seen = (
        Result("alignment", value, split, 9, {"captions": kind, "interval": [0, value], "k": 1})
        for value, split, kind in (
            (0.75, "zeroshot", "one object"),
            (0.5, "zeroshot", "relation"),
            (0.875, "validation", "one object"),
        )
    )
    log([one, two, seen, PSNR], tmp_path, step=70)
    events = EventAccumulator(str(tmp_path)).Reload()
    found = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    assert {tag: [(event.step, event.value) for event in found[tag]] for tag in found} == {
        "eval/alignment/zeroshot/captions=one_object": [(70, 0.75)],
        "eval/alignment/zeroshot/captions=relation": [(70, 0.5)],
        "eval/alignment/validation": [(70, 0.875)],
        "eval/psnr/zeroshot": [(70, 20.0)],
    }
