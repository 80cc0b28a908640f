"""results.json: every figure with what is needed to repeat it."""

import json
import math

import pytest

from tilewright.evaluations.results import Result, show, write

FID = Result("fid", 12.5, "validation", 100, {"extractor": "inception", "resize": "clean"})
PSNR = Result("psnr", 20.0, "zeroshot", 50, {})
COMMON = {"run": "/logs/prior/a", "data": "shapes", "seed": 3}


def test_every_figure_has_all_keys(tmp_path):
    path = write([FID, PSNR], tmp_path / "eval" / "fid", **COMMON)
    assert path == tmp_path / "eval" / "fid" / "results.json"
    rows = json.loads(path.read_text())
    assert len(rows) == 2
    for row in rows:
        keys = {"metric", "value", "split", "images", "seed", "run", "data", "extractor", "resize"}
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


def test_table_shows_figures_and_settings(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    show([FID, PSNR], "fid of a")
    shown = capsys.readouterr().out
    for part in ("fid of a", "12.5", "validation", "100", "resize=clean", "psnr", "zeroshot"):
        assert part in shown
