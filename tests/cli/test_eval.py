"""Metrics that eval measures, and their repetition."""

import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.command import fail, results, run, step

METRICS = {"fid": "fd", "kid": "kd", "is": "cs"}  # on Inception, and on another network
KEYS = {"metric", "value", "split", "images", "seed", "run", "extractor", "resize", "data"}


def measure(home, folder, metric, *arguments):
    """Runs eval on one run, and returns the rows of its results.json and its stdout."""
    stdout = run(home, "eval", f"metric={metric}", f"run={folder}", "device=cpu", *arguments)
    return results(folder, metric), stdout


@pytest.mark.parametrize(
    ("metric", "setting"),
    [
        ("reconstruction", "images=8"),
        ("fid", "images=6"),
        ("alignment", "captions=8"),
        ("identification", "among=8"),
    ],
)
def test_results_hold_what_is_needed_to_repeat_them(copied, metric, setting):
    folder = copied.dvae if metric == "reconstruction" else copied.prior
    rows, stdout = measure(copied, folder, metric, f"metric.{setting}", "seed=5")
    assert rows
    for row in rows:
        assert set(row) >= KEYS
        assert row["run"] == str(folder.resolve())
        assert row["seed"] == 5
        number = 1000 if metric == "identification" else int(setting.partition("=")[2])
        assert row["requested_images"] == number
        assert row["images"] > 0
        assert row["metric"] in stdout
    if metric == "fid":
        (row,) = rows
        assert row["images"] == 6
        assert row["resize"] == "clean"
        assert (row["metric"] == "fid") == ("inception" in row["extractor"])
        assert row["temperature"] == 0.5
    elif metric == "identification":
        assert {row["image_set"] for row in rows} == {"generated", "reconstructed"}
        assert {row["split"] for row in rows} == {"zeroshot"}
    else:
        assert {row["split"] for row in rows} == {"validation", "zeroshot"}
    if metric == "alignment":
        for split in ("validation", "zeroshot"):
            assert sum(row["images"] for row in rows if row["split"] == split) == 8


@pytest.mark.slow
def test_several_metrics_repeat_byte_for_byte(copied):
    written = []
    for _ in range(2):
        names = f"metric={','.join(METRICS)}"
        run(copied, "eval", names, "images=6", f"run={copied.prior}", "device=cpu")
        files = [copied.prior / "eval" / name / "results.json" for name in METRICS]
        written.append([file.read_bytes() for file in files])
    assert written[0] == written[1]
    for name, general in METRICS.items():
        rows = results(copied.prior, name)
        assert {row["metric"].split("_")[0] for row in rows} <= {name, general}
        assert all(row["images"] == 6 and row["extractor_digest"] for row in rows)
    events = EventAccumulator(str(copied.prior)).Reload()
    for row in results(copied.prior, "fid"):
        (*_, last) = events.Scalars(f"eval/{row['metric']}/validation")
        assert last.value == pytest.approx(row["value"])
        assert last.step == step(copied.prior / "checkpoints" / "best.ckpt")


def test_results_on_a_chosen_network_carry_its_name(copied):
    choice = ["images=4", "metric.splits=1", "extractor=efficientnet_lite2"]
    rows, stdout = measure(copied, copied.prior, "is", *choice)
    for row in rows:
        assert (row["metric"], row["extractor"]) == ("cs_efficientnet_lite2", "efficientnet_lite2")
        assert row["extractor_digest"] == "9656183eaeaf"
    assert "Inception" not in stdout


def test_several_runs_are_measured_by_one_command(copied):
    second = copied.dvae.with_name("second")
    shutil.copytree(copied.dvae, second)
    arguments = ["metric=reconstruction", "images=8", "metric.frechet=false", "device=cpu"]
    run(copied, "eval", *arguments, f"run={copied.dvae}", f"run={second}")
    for folder in (copied.dvae, second):
        rows = results(folder, "reconstruction")
        assert {row["run"] for row in rows} == {str(folder.resolve())}


def test_part_of_a_split_is_measured_on_changed_data(copied):
    part = 'metric.splits=["validation[1000:]"]'
    changes = ["data=shapes", "data.source.validation=1004", part]
    rows, _ = measure(copied, copied.prior, "alignment", *changes)
    assert {row["split"] for row in rows} == {"validation[1000:]"}
    assert sum(row["images"] for row in rows) == 4


def test_run_of_another_stage_is_refused(copied):
    line = fail(copied, "eval", "metric=fid", f"run={copied.dvae}")
    assert "stage=dvae" in line
    assert "prior" in line


def test_ranker_is_measured_by_retrieval_and_best_of(copied):
    rows, _ = measure(copied, copied.ranker, "retrieval", "metric.images=16")
    assert {row["split"] for row in rows} == {"validation", "zeroshot"}
    assert len(rows) == 2 * 6

    settings = ["metric.captions=8", "seed=4"]
    rows, _ = measure(copied, copied.prior, "best_of", "metric.counts=[1,3]", *settings)
    assert {row["best_of"] for row in rows} == {1, 3}
    assert {row["ranker"] for row in rows} == {"contrastive"}
    single, _ = measure(copied, copied.prior, "alignment", *settings)
    keys = ("split", "category", "images", "value")
    best_of_one = [[row[k] for k in keys] for row in rows if row["best_of"] == 1]
    assert best_of_one == [[row[k] for k in keys] for row in single]
