"""Settings of generate and eval, on untrained runs: odd values, sweeps and other data."""

import pytest
from datasets import Dataset, Image
from filelock import FileLock, Timeout
from omegaconf import OmegaConf

from helpers import untrained
from helpers.command import command, fail, make_home, results, run
from tilewright.evaluations import distributions, features, folders
from tilewright.evaluations import results as evaluation_results

RED = "prompt=a red circle"


def write_runs(folder):
    untrained.all_stages(folder)
    home = make_home(folder)
    home.dvae, home.prior, home.ranker = (
        home.logs / stage / "untrained" for stage in ("dvae", "prior", "ranker")
    )
    return home


@pytest.fixture
def home(tmp_path):
    return write_runs(tmp_path)


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Runs that no test changes."""
    return write_runs(tmp_path_factory.mktemp("home"))


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


def test_paper_sampling_takes_auto_and_an_empty_caption_is_announced(home):
    out = home.folder / "out"
    arguments = ["prompt=", "sampling=paper", "temperature=auto", "n=1", f"out={out}"]
    assert "1 of 1 captions without text" in run(home, "generate", *arguments)
    assert (out / "000-000.png").is_file()


def test_a_sweep_over_settings_keeps_all_results(home):
    sweep = ["metric=kid", "seed=0,1", "images=3,4"]
    run(home, "eval", *sweep)
    rows = results(home.prior, "kid")
    assert sorted((row["seed"], row["images"]) for row in rows) == [(0, 3), (0, 4), (1, 3), (1, 4)]
    assert {row["steps"] for row in rows} == {7}
    run(home, "eval", "metric=kid", "images=3")  # replaces its own record
    assert sorted(results(home.prior, "kid"), key=str) == sorted(rows, key=str)


def test_records_of_another_requested_number_of_images_stay(home):
    for count in (998, 999):  # the split has fewer images
        run(home, "eval", "metric=retrieval", f"images={count}")
    rows = [row for row in results(home.ranker, "retrieval") if row["metric"].endswith("@1")]
    assert {row["requested_images"] for row in rows} == {998, 999}
    assert max(row["images"] for row in rows) < 998


def test_a_refused_number_of_images_is_named_as_typed(home):
    for key in ("images", "metric.images"):
        line = fail(home, "eval", "metric=fid", f"{key}=1")
        assert line.startswith(f"error: {key}=1 is not possible")


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


def test_results_are_saved_under_the_lock_of_the_run(home, monkeypatch):
    write_results = evaluation_results.write_results

    def write_locked(*args, **kwargs):
        with pytest.raises(Timeout):
            FileLock(home.dvae / folders.LOCK).acquire(blocking=False)
        return write_results(*args, **kwargs)

    monkeypatch.setattr(evaluation_results, "write_results", write_locked)
    run(home, "eval", "metric=reconstruction", "metric.frechet=false", "images=4")
    assert results(home.dvae, "reconstruction")


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("temperature=nan", "temperature=nan is not possible"),
        ("guidance=inf", "guidance=inf is not possible"),
        ("top_k=0", "top_k=0 is not possible"),
        ("top_p=true", "top_p=true is not possible"),
        ("seed=99999999999999999999", "seed=99999999999999999999 is not possible"),
        ("n=null", "n=null is not a whole number"),
        ("n=1.5", "n=1.5 is not a whole number"),
        ("batch_size=null", "batch_size=null is not a whole number"),
        ("complete=x", "complete=x is not possible: set true or false"),
        ("rows=3", "rows=3 needs an image"),
        ("image_prompt={image} rows=0", "rows=0 is not possible"),
        ("best_of=2 ranker.likelihood_weight=nan", "likelihood_weight=nan is not possible"),
    ],
)
def test_odd_values_of_generate_are_refused(logs, arguments, message):
    words = arguments.format(image=logs.folder / "images" / "0.png").split()
    assert message in fail(logs, "generate", RED, *words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("kid images=0", "images=0 is not possible"),
        ("kid images=1", "images=1 is not possible: set a whole number of 2 or more"),
        ("kid metric.images=null", "images=null is not possible"),
        ("kid metric.subset_size=1", "subset_size=1 is not possible"),
        ("kid metric.subsets=0", "subsets=0 is not possible"),
        ("kid metric.split=[validation]", "no split [validation]: set"),
        ("kid metric.sampling=null", "metric.sampling=null is not possible"),
        ("kid resize=null", "resize=None is unknown"),
        ("is images=1", "images=1 is not possible"),
        ("is metric.splits=0", "splits=0 is not possible"),
        ("fid metric.blur=nan", "blur=nan is not possible"),
        ("fid metric.blur=null", "blur=null is not possible"),
        ("fid metric.blur=[]", "blur=[] measures nothing"),
        ("best_of metric.counts=[]", "counts=[] is not a list of numbers"),
        ("best_of metric.counts=4", "counts=4 is not a list of numbers"),
        ("best_of metric.counts=[1.5]", "counts=1.5 is not possible"),
        ("best_of metric.batch_size=0", "batch_size=0 is not possible"),
        ("best_of images=1", "captions=1 is not possible: set a whole number of 2 or more"),
        ("best_of metric.splits=[]", "names no split of the data"),
        ("identification metric.split=validation metric.among=1", "among=1 is not possible"),
        ("clip_score metric.images=0", "images=0 is not possible"),
        ("alignment metric.captions=0", "captions=0 is not possible"),
        ("reconstruction images=1", "images=1 is not possible"),
        ("reconstruction metric.frechet=x", "frechet=x is not possible"),
        ("reconstruction metric.splits=null", "metric.splits=null is not possible"),
        ("reconstruction metric.splits=nope", "metric.splits=nope is not a list"),
        ('retrieval metric.splits=["validation[:1]"]', "only one usable pair"),
        ("retrieval images=1", "images=1 is not possible"),
        ("retrieval metric.batch_size=0", "batch_size=0 is not possible"),
    ],
)
def test_odd_values_of_eval_are_refused(logs, arguments, message):
    metric, *words = arguments.split()
    assert message in fail(logs, "eval", f"metric={metric}", *words)


def test_a_missing_split_is_left_out_with_a_warning(home):
    stdout = run(home, "eval", "metric=retrieval", "images=4")
    assert "no split zeroshot, which is left out" in stdout
    rows = results(home.ranker, "retrieval")
    assert {row["metric"] for row in rows} == {  # among 4 pairs, recall@5 would be 1
        "caption_to_image_r@1",
        "image_to_caption_r@1",
    }
