"""What eval measures, and that it can be repeated."""

import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.process import figures, run, step

pytestmark = pytest.mark.slow

METRICS = {"fid": "fd", "kid": "kd", "is": "cs"}  # on Inception, and on another network


@pytest.mark.parametrize(
    ("metric", "argument"),
    [
        ("reconstruction", "images=8"),
        ("fid", "images=6"),
        ("alignment", "captions=8"),
        ("identification", "among=8"),
    ],
)
def test_eval_writes_figures_that_can_be_repeated(copied, metric, argument):
    measured = copied.dvae if metric == "reconstruction" else copied.prior
    arguments = [f"metric={metric}", f"metric.{argument}", f"run={measured}", "seed=5"]
    done = run(copied.folder, "eval", *arguments, "device=cpu")
    rows = figures(measured, metric)
    assert rows
    for row in rows:
        keys = {"metric", "value", "split", "images", "seed", "run", "extractor", "resize", "data"}
        assert keys <= set(row)
        assert row["run"] == str(measured.resolve())
        assert row["seed"] == 5
        assert row["images"] > 0
        assert row["metric"] in done.stdout
    if metric == "fid":
        (row,) = rows
        assert row["images"] == 6
        assert row["resize"] == "clean"
        assert row["extractor"]
        assert (row["metric"] == "fid") == ("inception" in row["extractor"])
        assert row["temperature"] == 1.0
    elif metric == "identification":
        assert {row["image_set"] for row in rows} == {"generated", "reconstructed"}
        assert {row["split"] for row in rows} == {"zeroshot"}
    else:
        assert {row["split"] for row in rows} == {"validation", "zeroshot"}
    if metric == "alignment":
        for split in ("validation", "zeroshot"):
            assert sum(row["images"] for row in rows if row["split"] == split) == 8


def test_eval_of_several_metrics_repeats_byte_for_byte(copied):
    folder = copied.prior / "eval"
    written = []
    for _ in range(2):
        run(
            copied.folder,
            "eval",
            "metric=fid,kid,is",
            "images=6",
            f"run={copied.prior}",
            "device=cpu",
        )
        written.append([(folder / name / "results.json").read_bytes() for name in METRICS])
    assert written[0] == written[1]
    for name, general in METRICS.items():
        rows = figures(copied.prior, name)
        assert {row["metric"].split("_")[0] for row in rows} <= {name, general}
        assert all(row["images"] == 6 and row["extractor_digest"] for row in rows)
    events = EventAccumulator(str(copied.prior)).Reload()
    for row in figures(copied.prior, "fid"):
        (*_, last) = events.Scalars(f"eval/{row['metric']}/validation")
        assert last.value == pytest.approx(row["value"])
        assert last.step == step(copied.prior / "checkpoints" / "best.ckpt")


def test_eval_of_several_runs(copied):
    other = copied.folder / "logs" / "dvae" / "other"
    shutil.copytree(copied.dvae, other)
    words = ["metric=reconstruction", "images=8", "metric.frechet=false", "device=cpu"]
    run(copied.folder, "eval", *words, f"run={copied.dvae},{other}")
    for folder in (copied.dvae, other):
        rows = figures(folder, "reconstruction")
        assert {row["run"] for row in rows} == {str(folder.resolve())}
    shutil.rmtree(other)


def test_eval_on_other_captions_than_the_runs_own(copied):
    part = '"validation[1000:]"'
    more = ["data=shapes", "data.source.validation=1004", f"metric.splits=[{part}]"]
    run(copied.folder, "eval", "metric=alignment", f"run={copied.prior}", "device=cpu", *more)
    rows = figures(copied.prior, "alignment")
    assert {row["split"] for row in rows} == {"validation[1000:]"}
    assert sum(row["images"] for row in rows) == 4


def test_eval_of_another_stages_run_is_one_line(copied):
    done = run(copied.folder, "eval", "metric=fid", f"run={copied.dvae}", status=1)
    (line,) = done.stderr.splitlines()
    assert "stage=dvae" in line
    assert "prior" in line


def test_eval_of_a_ranker(copied):
    run(
        copied.folder,
        "eval",
        "metric=retrieval",
        "metric.images=16",
        f"run={copied.ranker}",
        "device=cpu",
    )
    rows = figures(copied.ranker, "retrieval")
    assert {row["split"] for row in rows} == {"validation", "zeroshot"}
    assert len(rows) == 2 * 6

    words = ["metric.captions=8", f"run={copied.prior}", "device=cpu", "seed=4"]
    run(copied.folder, "eval", "metric=best_of", "metric.counts=[1,3]", *words)
    rows = figures(copied.prior, "best_of")
    assert {row["best_of"] for row in rows} == {1, 3}
    assert {row["ranker"] for row in rows} == {"contrastive"}
    run(copied.folder, "eval", "metric=alignment", *words)
    key = ("split", "category", "images", "value")
    single = [tuple(row[k] for k in key) for row in figures(copied.prior, "alignment")]
    assert [tuple(row[k] for k in key) for row in rows if row["best_of"] == 1] == single
