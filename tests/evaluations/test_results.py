"""Tests of results in results.json, in the printed table and in TensorBoard."""

import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tilewright.evaluations.results import (
    Result,
    log_results,
    print_results,
    replace_images,
    write_results,
)

FID = Result("fid", 12.5, "validation", 100, {"extractor": "inception", "resize": "clean"})
PSNR = Result("psnr", 20.0, "zeroshot", 50, {})
COMMON = {"run": "/logs/prior/a", "data": "shapes", "seed": 3}


def test_every_record_has_all_keys(tmp_path):
    path = write_results([FID, PSNR], tmp_path / "eval" / "fid", **COMMON)
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
    assert rows[1]["extractor"] is None  # PSNR has no feature network
    assert rows[1]["value"] == 20.0


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_values_that_are_not_finite_give_valid_json(tmp_path, caplog, value):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    path = write_results([Result("psnr", value, "validation", 1, {})], tmp_path, **COMMON)
    (row,) = json.loads(path.read_text(), parse_constant=refuse)
    assert row["value"] == str(value)
    assert f"psnr on validation is {value}" in caplog.text


def test_earlier_records_stay_unless_a_new_one_has_the_same_settings(tmp_path):
    def written(value, interval, seed=0, run="/a", **settings):
        result = Result("share", value, "validation", 9, {"interval": interval, **settings})
        path = write_results([result], tmp_path, run=run, seed=seed)
        return [row["value"] for row in json.loads(path.read_text())]

    assert written(0.1, [0, 0.2]) == [0.1]
    assert written(0.2, [0, 0.3], seed=1) == [0.1, 0.2]
    assert written(0.3, [0, 0.4], top_k=4) == [0.1, 0.2, 0.3]
    assert written(0.4, [0, 0.5]) == [0.2, 0.3, 0.4]  # the first setting again
    assert written(0.4, [0, 0.5]) == [0.2, 0.3, 0.4]
    assert written(0.5, [0, 0.6], run="/moved") == [0.2, 0.3, 0.5]


def test_broken_records_are_replaced_with_a_warning(tmp_path, caplog):
    (tmp_path / "results.json").write_text("[{")
    write_results([PSNR], tmp_path, **COMMON)
    assert "results.json cannot be read and is replaced" in caplog.text
    assert len(json.loads((tmp_path / "results.json").read_text())) == 1


def test_new_images_replace_the_earlier_ones_and_keep_the_records(tmp_path):
    new, folder = tmp_path / "new", tmp_path / "eval"
    for place, name in ((new, "b"), (folder, "a")):
        (place / name).mkdir(parents=True)
        for file in ("samples.png", f"{name}.png", f"{name}/0.png"):
            (place / file).write_text(name)
    (folder / "results.json").write_text("[]")
    replace_images(new, folder)
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert names == {"results.json", "samples.png", "b.png", "b", "b/0.png"}
    assert (folder / "samples.png").read_text() == "b"


def test_differing_settings_are_columns_and_shared_ones_are_below(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    sharp, blurred = (
        Result("fid", value, "validation", 100, {"blur": blur, "resize": "clean", "top_k": None})
        for value, blur in ((12.5, 0), (11.5, 4))
    )
    print_results([sharp, blurred], "fid of a")
    title, _, header, *_, caption = capsys.readouterr().out.rstrip().splitlines()
    assert title.strip() == "fid of a"
    assert header.split() == ["metric", "value", "split", "images", "blur"]
    assert caption.strip() == "resize=clean"


def test_the_table_shows_intervals_and_several_metrics(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    share = Result("share", 0.5, "zeroshot", 5, {"interval": [0.1, 0.9]})
    print_results([FID, PSNR, share], "all of a")
    printed = capsys.readouterr().out
    for part in ("12.5", "validation", "inception", "clean", "psnr", "zeroshot", "[0.1, 0.9]"):
        assert part in printed


def test_names_with_brackets_are_printed_as_typed(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    clips = [Result("clip_score", 1.0, "a[r]", 5, {"extractor": name}) for name in ["[b]", "[/]"]]
    print_results(clips, "clip_score of prior/run[r]")
    printed = capsys.readouterr().out
    for part in ("prior/run[r]", "a[r]", "[b]", "[/]"):
        assert part in printed


def test_tensorboard_tags_contain_the_differing_settings(tmp_path):
    results = [
        Result("alignment", value, split, 9, {"category": name, "interval": [0, value], "k": 1})
        for value, split, name in (
            (0.75, "zeroshot", "one object"),
            (0.5, "zeroshot", "relation"),
            (0.875, "validation", "one object"),
        )
    ]
    log_results([*results, PSNR], tmp_path, step=70)
    events = EventAccumulator(str(tmp_path)).Reload()
    scalars = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    assert {tag: [(event.step, event.value) for event in scalars[tag]] for tag in scalars} == {
        "eval/alignment/zeroshot/category=one_object": [(70, 0.75)],
        "eval/alignment/zeroshot/category=relation": [(70, 0.5)],
        "eval/alignment/validation": [(70, 0.875)],
        "eval/psnr/zeroshot": [(70, 20.0)],
    }
