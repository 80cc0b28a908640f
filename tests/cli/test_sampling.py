"""Settings of generate and eval, on untrained runs: odd values, sweeps and other data."""

import pytest
from datasets import Dataset, Image
from omegaconf import OmegaConf

from helpers import untrained
from helpers.command import command, fail, make_home, results, run
from tilewright.evaluations import distributions, features

RED = "prompt=a red circle"


@pytest.fixture
def home(tmp_path):
    untrained.all_stages(tmp_path)
    home = make_home(tmp_path)
    home.dvae, home.prior, home.ranker = (
        home.logs / stage / "untrained" for stage in ("dvae", "prior", "ranker")
    )
    return home


def set_caption_dropout(prior, value):
    config = OmegaConf.load(prior / "config.yaml")
    OmegaConf.update(config, "model.caption_dropout", value)
    OmegaConf.save(config, prior / "config.yaml")


def test_guidance_and_likelihood_ranker_are_refused_for_a_prior_without_caption_dropout(home):
    set_caption_dropout(home.prior, 0.0)
    model = home.folder / "model"
    run(home, "export", f"run={home.prior}", f"out={model}", "captions=1", "n=1")
    guidance, ranker = "guidance=2", ["n=1", "best_of=2", "ranker=likelihood"]
    for prior in (home.prior, model):
        for arguments, setting in (([guidance], guidance), (ranker, "LikelihoodRanker")):
            line = fail(home, "generate", RED, f"run={prior}", *arguments)
            assert f"{setting} needs a prior that has seen empty captions" in line
            assert "model.caption_dropout=0:" in line
    assert "guidance=2 needs" in fail(home, "eval", "metric=kid", guidance, "images=3")
    line = fail(home, "eval", "metric=best_of", "ranker=likelihood", "images=3")
    assert "LikelihoodRanker needs" in line
    assert not (home.prior / "samples").exists()


def test_guidance_is_possible_after_caption_dropout(home):
    set_caption_dropout(home.prior, 0.1)
    model = home.folder / "model"
    run(home, "export", f"run={home.prior}", f"out={model}", "captions=1", "n=1")
    for prior in (home.prior, model):
        run(home, "generate", RED, f"run={prior}", "guidance=2", "n=1", f"out={home.folder}/out")


def test_a_sweep_over_settings_keeps_all_results(home):
    sweep = ["metric=kid", "seed=0,1", "images=3,4"]
    run(home, "eval", *sweep)
    rows = results(home.prior, "kid")
    assert sorted((row["seed"], row["images"]) for row in rows) == [(0, 3), (0, 4), (1, 3), (1, 4)]
    assert {row["steps"] for row in rows} == {7}
    run(home, "eval", "metric=kid", "images=3")  # replaces its own record
    assert sorted(results(home.prior, "kid"), key=str) == sorted(rows, key=str)


def test_a_failed_evaluation_leaves_the_last_result(home, monkeypatch):
    run(home, "eval", "metric=kid", "images=3")
    folder = home.prior / "eval" / "kid"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(before) > 3

    def fail_late(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(distributions, "kernel_distance", fail_late)
    assert command("eval", ["metric=kid", "images=4"], home) == 130
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not list(home.prior.glob(".eval-*"))


def test_a_run_is_measured_on_other_data_and_on_its_own_with_changes(home):
    arguments = ["metric=reconstruction", "metric.frechet=false", "images=4", f"run={home.dvae}"]
    other = untrained.write_images(home.folder / "other", count=9)
    rows = Dataset.from_dict({"image": [str(p) for p in other.glob("*.png")], "caption": ["a"] * 9})
    rows.cast_column("image", Image()).to_parquet(home.folder / "rows.parquet")
    table = ["data=parquet", f"data.source.path={home.folder}/rows.parquet"]
    assert "on parquet" in run(home, "eval", *arguments, *table)
    run(home, "eval", *arguments, f"data.source.path={other}", "data=folder")
    run(home, "eval", *arguments)
    rows = [row for row in results(home.dvae, "reconstruction") if row["metric"] == "psnr"]
    assert [row["data"] for row in rows] == ["parquet", "folder", "folder"]
    assert rows[1]["data.source.path"] == str(other)
    assert "data.source.path" not in rows[2]
    assert len({row["value"] for row in rows}) == 3


def test_the_ranker_of_best_of_is_part_of_its_record(home, monkeypatch):
    monkeypatch.setattr(features, "frechet_distance", lambda *_: 1.0)  # which takes seconds
    run(home, "eval", "metric=best_of", "images=3", "metric.counts=[2]",
        "ranker.likelihood_weight=0,0.5")  # fmt: skip
    rows = results(home.prior, "best_of")
    assert [row["ranker.likelihood_weight"] for row in rows] == [0, 0.5]
    assert {row["ranker.run"] for row in rows} == {str(home.ranker.resolve())}
