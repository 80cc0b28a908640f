"""The three commands from end to end, on a few pictures and for a few steps."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tilewright.pipeline import TextToImage

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SMALL = [
    "trainer=cpu",
    "data.source.train=200",
    "data.source.validation=32",
    "data.source.zeroshot=16",
    "data.batch_size=8",
    "trainer.max_steps=6",
    "trainer.val_check_interval=3",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=1",
]
PROMPT = "a large red circle"
METRICS = {"fid": "fd", "kid": "kd", "is": "cs"}  # on Inception, and on another network


def run(home, command, *arguments, status=0):
    """A finished process, which ended with this status."""
    words = [sys.executable, str(ROOT / "src" / f"{command}.py"), *arguments]
    words += [f"paths.data={home / 'data'}", f"paths.logs={home / 'logs'}"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def trained(home):
    """A dVAE and a prior on it, both named, and what they printed."""
    frechet = "callbacks.frechet.images=4"
    dvae = run(home, "train", "stage=dvae", "run_name=first", frechet, *SMALL)
    samples = ["callbacks.samples.count=2", "callbacks.samples.candidates=1"]
    prior = run(home, "train", "stage=prior", frechet, *samples, *SMALL)
    (folder,) = (path for path in (home / "logs" / "prior").iterdir() if not path.is_symlink())
    return SimpleNamespace(
        dvae=home / "logs" / "dvae" / "first",
        prior=folder,
        said={"dvae": dvae.stdout, "prior": prior.stdout},
    )


@pytest.fixture(scope="module")
def ranker(home):
    """A ranker on the same data."""
    run(home, "train", "stage=ranker", "run_name=ranker", *SMALL)
    return home / "logs" / "ranker" / "ranker"


def steps_of(run):
    """Steps of the validation's figures in metrics.csv."""
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [int(row["step"]) + 1 for row in rows if row.get("validation/loss")]


def step(checkpoint):
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]


def figures(run, metric):
    return json.loads((run / "eval" / metric / "results.json").read_text())


@pytest.mark.parametrize("stage", ["dvae", "prior"])
def test_a_run_is_a_folder(trained, stage):
    run = getattr(trained, stage)
    for file in ("config.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.csv"):
        assert (run / file).is_file()
    assert list(run.glob("events.out.tfevents.*"))
    assert "${" not in (run / "config.yaml").read_text()
    assert step(run / "checkpoints" / "last.ckpt") == 6
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert (run.parent / "latest").resolve() == run.resolve()
    said = "".join(trained.said[stage].split())  # wherever the terminal breaks its lines
    assert f"Training{run}" in said


def test_a_prior_has_all_that_it_needs(trained):
    assert (trained.prior / "tokenizer.json").is_file()
    assert (trained.prior / "dvae" / "config.json").is_file()
    assert (trained.prior / "dvae" / "model.safetensors").is_file()


def test_no_folder_of_hydras(trained, home):
    assert {path.name for path in (home / "logs").iterdir()} <= {"dvae", "prior", "multirun"}
    assert not (ROOT / "outputs").exists()


def test_a_name_is_taken_once(trained, home):
    done = run(home, "train", "stage=dvae", "run_name=first", *SMALL, status=1)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert f"resume={trained.dvae}" in line


def test_resume_goes_on_in_the_same_folder(trained, home):
    copy = home / "logs" / "dvae" / "resumed"
    shutil.copytree(trained.dvae, copy)
    runs = set((home / "logs" / "dvae").iterdir())
    assert steps_of(copy) == [3, 6]
    run(home, "train", "stage=dvae", f"resume={copy}", "trainer.max_steps=9")
    assert set((home / "logs" / "dvae").iterdir()) == runs
    assert step(copy / "checkpoints" / "last.ckpt") == 9
    assert step(trained.dvae / "checkpoints" / "last.ckpt") == 6
    assert steps_of(copy) == [3, 6, 9]


def test_resume_true_takes_the_newest_and_keeps_its_groups(trained, home):
    done = run(home, "train", "stage=prior", "resume=true", "model=dvae_small", status=1)
    (line,) = done.stderr.splitlines()
    assert "model=prior_modern" in line
    run(home, "train", "stage=prior", "resume=true", "trainer.max_steps=7")
    assert step(trained.prior / "checkpoints" / "last.ckpt") == 7


def test_a_sweep_makes_a_run_of_each_job(trained, home):
    arguments = [word for word in SMALL if not word.startswith("trainer.max_steps")]
    run(
        home,
        "train",
        "--multirun",
        "stage=dvae",
        "run_name=sweep",
        "trainer.max_steps=2,3",
        "trainer.val_check_interval=2",
        "callbacks.frechet.images=4",
        *(word for word in arguments if not word.startswith("trainer.val_check_interval")),
    )
    for number, steps in enumerate((2, 3)):
        folder = home / "logs" / "dvae" / f"sweep_{number}"
        assert step(folder / "checkpoints" / "last.ckpt") == steps


@pytest.mark.parametrize(
    ("metric", "argument"),
    [("reconstruction", "images=8"), ("fid", "images=6"), ("alignment", "captions=8")],
)
def test_eval_writes_figures_that_can_be_repeated(trained, home, metric, argument):
    measured = trained.dvae if metric == "reconstruction" else trained.prior
    arguments = [f"metric={metric}", f"metric.{argument}", f"run={measured}", "seed=5"]
    done = run(home, "eval", *arguments, "device=cpu")
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
    else:
        assert {row["split"] for row in rows} == {"validation", "zeroshot"}
    if metric == "alignment":
        for split in ("validation", "zeroshot"):
            assert sum(row["images"] for row in rows if row["split"] == split) == 8


def test_eval_of_several_metrics_repeats_byte_for_byte(trained, home):
    folder = trained.prior / "eval"
    written = []
    for _ in range(2):
        run(home, "eval", "metric=fid,kid,is", "images=6", f"run={trained.prior}", "device=cpu")
        written.append([(folder / name / "results.json").read_bytes() for name in METRICS])
    assert written[0] == written[1]
    for name, general in METRICS.items():
        rows = figures(trained.prior, name)
        assert {row["metric"].split("_")[0] for row in rows} <= {name, general}
        assert all(row["images"] == 6 and row["extractor_digest"] for row in rows)
    events = EventAccumulator(str(trained.prior)).Reload()
    for row in figures(trained.prior, "fid"):
        (*_, last) = events.Scalars(f"eval/{row['metric']}/validation")
        assert last.value == pytest.approx(row["value"])
        assert last.step == step(trained.prior / "checkpoints" / "best.ckpt")


def test_eval_of_several_runs(trained, home):
    other = home / "logs" / "dvae" / "other"
    shutil.copytree(trained.dvae, other)
    words = ["metric=reconstruction", "images=8", "metric.frechet=false", "device=cpu"]
    run(home, "eval", *words, f"run={trained.dvae},{other}")
    for folder in (trained.dvae, other):
        rows = figures(folder, "reconstruction")
        assert {row["run"] for row in rows} == {str(folder.resolve())}
    shutil.rmtree(other)


def test_eval_of_another_stages_run_is_one_line(trained, home):
    done = run(home, "eval", "metric=fid", f"run={trained.dvae}", status=1)
    (line,) = done.stderr.splitlines()
    assert "stage=dvae" in line
    assert "prior" in line


def pictures(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_generate_draws_and_repeats(trained, home, tmp_path):
    words = [f"prompt={PROMPT}", "n=2", f"run={trained.prior}", "device=cpu"]
    folders = [tmp_path / name for name in ("a", "b", "c")]
    run(home, "generate", *words, f"out={folders[0]}", "seed=1")
    run(home, "generate", *words, f"out={folders[1]}", "seed=1")
    first, second = map(pictures, folders[:2])
    assert set(first) == {"000-000.png", "000-001.png", "grid.png"}
    assert first == second
    assert first["000-000.png"] != first["000-001.png"]
    record = json.loads((folders[0] / "pictures.json").read_text())
    assert record["seed"] == 1
    assert record["run"] == str(trained.prior.resolve())
    assert record["sampling"]["temperature"] == 1.0
    assert [picture["file"] for picture in record["pictures"]] == ["000-000.png", "000-001.png"]
    assert {picture["prompt"] for picture in record["pictures"]} == {PROMPT}
    with (
        Image.open(folders[0] / "000-001.png") as picture,
        Image.open(folders[0] / "grid.png") as grid,
    ):
        told = [json.loads(image.text["tilewright"]) for image in (picture, grid)]
    shared = {"run": trained.prior.name, "seed": 1, "sampling": record["sampling"]}
    assert told[0] == {**shared, "prompt": PROMPT, "candidate": 1}
    assert told[1] == {**shared, "pictures": record["pictures"]}


def test_generate_goes_on_with_a_picture(trained, home, tmp_path):
    given = tmp_path / "photo.png"
    Image.new("RGB", (50, 40), "red").save(given)
    out = tmp_path / "out"
    prompts = 'prompt=["a small red circle","a large blue ring"]'
    run(home, "generate", prompts, "n=1", f"image_prompt={given}", "rows=3", f"out={out}")
    assert set(pictures(out)) == {"000-000.png", "001-000.png", "grid.png"}
    with Image.open(out / "001-000.png") as picture:
        told = json.loads(picture.text["tilewright"])
    assert (told["image_prompt"], told["rows"]) == ("photo.png", 3)

    model = TextToImage.from_run(trained.prior)
    ((picture,),) = model([PROMPT], image_prompt=Image.open(given).convert("RGB"), rows=3)
    ((other,),) = model([PROMPT], seed=1)
    assert picture.size == other.size == (32, 32)
    assert picture.tobytes() != other.tobytes()


def test_generate_carries_a_caption_on(trained, home, tmp_path):
    words = [f"prompt={PROMPT}", "complete=true", "n=1", f"run={trained.prior}", "seed=2"]
    done = run(home, "generate", *words, f"out={tmp_path / 'out'}")
    record = json.loads((tmp_path / "out" / "pictures.json").read_text())
    (picture,) = record["pictures"]
    assert picture["prompt"].startswith(PROMPT)
    assert picture["prompt"] in done.stdout
    model = TextToImage.from_run(trained.prior)
    assert model.complete([PROMPT], seed=2) == [picture["prompt"]]


def test_a_pairs_likelihood(trained):
    model = TextToImage.from_run(trained.prior)
    images = torch.rand(2, 3, 32, 32)
    of_text, of_image = model.log_likelihood([PROMPT, "a blue ring"], images)
    assert of_text.shape == of_image.shape == (2,)
    assert (of_text < 0).all()
    assert (of_image < 0).all()


def test_a_ranker_shows_what_it_finds(ranker):
    with (ranker / "metrics.csv").open() as file:
        names = csv.DictReader(file).fieldnames
    assert {"retrieval/caption_to_image_r@1", "retrieval/image_to_caption_r@10"} <= set(names)


@pytest.mark.parametrize("kind", ["contrastive", "likelihood"])
def test_generate_keeps_the_best(trained, ranker, home, tmp_path, kind):
    words = [f"prompt={PROMPT}", f"run={trained.prior}", "device=cpu", f"ranker={kind}"]
    run(home, "generate", *words, "n=2", "best_of=6", "batch_size=4", f"out={tmp_path / 'best'}")
    run(home, "generate", *words, "n=6", f"out={tmp_path / 'all'}")
    record = json.loads((tmp_path / "best" / "pictures.json").read_text())
    assert record["best_of"] == 6
    assert "${" not in json.dumps(record["ranker"])
    first, second = record["pictures"]
    assert first["score"] >= second["score"]
    for chosen in (first, second):
        best = Image.open(tmp_path / "best" / chosen["file"])
        candidate = Image.open(tmp_path / "all" / f"000-{chosen['candidate']:03}.png")
        assert best.tobytes() == candidate.tobytes()
        told = json.loads(best.text["tilewright"])
        assert (told["score"], told["best_of"], told["ranker"]) == (chosen["score"], 6, kind)


def test_best_of_without_a_ranker_is_one_line(trained, tmp_path, home):
    words = [f"prompt={PROMPT}", f"run={trained.prior}", "best_of=9"]
    done = run(home, "generate", *words, "ranker=none", status=1)
    (line,) = done.stderr.splitlines()
    assert "ranker=none" in line
    shutil.copytree(trained.prior, tmp_path / "logs" / "prior" / "alone")
    done = run(tmp_path, "generate", f"prompt={PROMPT}", "best_of=9", status=1)
    (line,) = done.stderr.splitlines()
    assert "python src/train.py stage=ranker" in line


def test_eval_of_a_ranker(trained, ranker, home):
    run(home, "eval", "metric=retrieval", "metric.images=16", f"run={ranker}", "device=cpu")
    rows = figures(ranker, "retrieval")
    assert {row["split"] for row in rows} == {"validation", "zeroshot"}
    assert len(rows) == 2 * 6

    words = ["metric.captions=8", f"run={trained.prior}", "device=cpu", "seed=4"]
    run(home, "eval", "metric=best_of", "metric.counts=[1,3]", *words)
    rows = figures(trained.prior, "best_of")
    assert {row["best_of"] for row in rows} == {1, 3}
    assert {row["ranker"] for row in rows} == {"contrastive"}
    run(home, "eval", "metric=alignment", *words)
    key = ("split", "captions", "images", "value")
    single = [tuple(row[k] for k in key) for row in figures(trained.prior, "alignment")]
    assert [tuple(row[k] for k in key) for row in rows if row["best_of"] == 1] == single


def test_image_prompt_that_is_no_picture_is_one_line(trained, home, tmp_path):
    done = run(
        home, "generate", f"prompt={PROMPT}", f"image_prompt={tmp_path / 'none.png'}", status=1
    )
    (line,) = done.stderr.splitlines()
    assert "none.png" in line


def test_in_python(trained):
    model = TextToImage.from_run(trained.prior)
    rows = model([PROMPT, "ein roter kreis 赤"], n=2, seed=3)
    assert [len(row) for row in rows] == [2, 2]
    assert all(isinstance(picture, Image.Image) for row in rows for picture in row)
    again = model([PROMPT, "ein roter kreis 赤"], n=2, seed=3)
    assert [[p.tobytes() for p in row] for row in rows] == [
        [p.tobytes() for p in row] for row in again
    ]


def test_a_prior_draws_wherever_it_is_copied_to(trained, tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(trained.prior, copy)
    away = trained.dvae.with_name("away")
    trained.dvae.rename(away)
    try:
        ((picture,),) = TextToImage.from_run(copy)([PROMPT], seed=2)
    finally:
        away.rename(trained.dvae)
    ((original,),) = TextToImage.from_run(trained.prior)([PROMPT], seed=2)
    assert picture.tobytes() == original.tobytes()


@pytest.mark.parametrize("quantiser", ["vq", "fsq"])
def test_all_commands_take_any_quantiser(quantiser, tmp_path):
    frechet = "callbacks.frechet.images=4"
    samples = ["callbacks.samples.count=2", "callbacks.samples.candidates=1"]
    run(tmp_path, "train", "stage=dvae", f"model=dvae_{quantiser}", frechet, *SMALL)
    run(tmp_path, "train", "stage=prior", frechet, *samples, *SMALL)
    run(tmp_path, "eval", "metric=reconstruction", "metric.images=8", "device=cpu")
    assert {
        row["metric"] for row in figures(tmp_path / "logs" / "dvae" / "latest", "reconstruction")
    }
    run(tmp_path, "generate", f"prompt={PROMPT}", "n=2", f"out={tmp_path / 'out'}", "device=cpu")
    assert set(pictures(tmp_path / "out")) == {"000-000.png", "000-001.png", "grid.png"}


def test_an_exported_model_goes_wherever_a_run_does(trained, ranker, home, tmp_path):
    model, dvae, chooser = (tmp_path / name for name in ("model", "dvae", "ranker"))
    words = [f"run={trained.prior}", f"with_ranker={ranker}", "captions=2", "n=1"]
    done = run(home, "export", *words, f"out={model}", "license=mit")
    assert str(model / "README.md") in done.stdout
    run(home, "export", f"run={trained.dvae}", f"out={dvae}")
    run(home, "export", f"run={ranker}", f"out={chooser}")

    words = [f"prompt={PROMPT}", "n=2", "best_of=4", "device=cpu"]
    run(home, "generate", *words, f"run={trained.prior}", f"out={tmp_path / 'a'}")
    run(tmp_path, "generate", *words, f"run={model}", f"out={tmp_path / 'b'}")  # no runs there
    run(home, "generate", *words, f"run={model}", f"ranker.run={chooser}", f"out={tmp_path / 'c'}")
    drawn = [
        [Image.open(tmp_path / out / f"000-00{n}.png").tobytes() for n in (0, 1)] for out in "abc"
    ]
    assert drawn[0] == drawn[1] == drawn[2]

    words = ["metric=alignment", "metric.captions=8", "device=cpu"]
    (line,) = run(home, "eval", *words, f"run={model}", status=1).stderr.splitlines()
    assert "data=NAME" in line
    run(home, "eval", *words, f"run={trained.prior}")
    run(home, "eval", *words, f"run={model}", "data=shapes", *SMALL[1:4])
    own, shared = (figures(folder, "alignment") for folder in (trained.prior, model))
    assert [row["value"] for row in own] == [row["value"] for row in shared]
    assert {row["data"] for row in shared} == {"shapes"}

    words = [f"dvae={dvae}", "run_name=on_shared", *SMALL, "~callbacks.frechet"]
    run(home, "train", "stage=prior", *words)
    kept = home / "logs" / "prior" / "on_shared" / "dvae" / "model.safetensors"
    assert load_file(kept).keys() == load_file(dvae / "model.safetensors").keys()
