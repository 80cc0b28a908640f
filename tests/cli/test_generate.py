"""Images that generate writes, their records, and their repetition."""

import json
import shutil

import pytest
from PIL import Image

from helpers.command import PROMPT, fail, images, make_home, run
from tilewright import files, runs
from tilewright.pipeline import TextToImage


def record_of(file):
    """Returns the settings that a PNG file holds as text."""
    with Image.open(file) as image:
        return json.loads(image.text["tilewright"])


def test_same_seed_gives_the_same_files_and_records(copied, tmp_path):
    arguments = [f"prompt={PROMPT}", "n=2", f"run={copied.prior}", "device=cpu", "seed=1"]
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        run(copied, "generate", *arguments, f"out={folder}")
    first, second = map(images, folders)
    assert set(first) == {"000-000.png", "000-001.png", "grid.png"}
    assert first == second
    assert first["000-000.png"] != first["000-001.png"]
    record = json.loads((folders[0] / "pictures.json").read_text())
    assert record["seed"] == 1
    assert record["run"] == str(copied.prior.resolve())
    assert record["sampling"]["temperature"] == 0.5
    assert [picture["file"] for picture in record["pictures"]] == ["000-000.png", "000-001.png"]
    assert {picture["prompt"] for picture in record["pictures"]} == {PROMPT}
    steps = runs.trained_steps(copied.prior)
    assert record["steps"] == steps > 0
    settings = {"seed": 1, "sampling": record["sampling"]}
    shared = {"run": copied.prior.name, "steps": steps, **settings}
    second = {**shared, "prompt": PROMPT, "candidate": 1}
    assert record_of(folders[0] / "000-001.png") == second
    assert record_of(folders[0] / "grid.png") == {**shared, "pictures": record["pictures"]}


def test_images_of_an_earlier_command_are_removed(copied, tmp_path):
    out = tmp_path / "out"
    arguments = [f"prompt={PROMPT}", f"run={copied.prior}", f"out={out}"]
    run(copied, "generate", *arguments, "n=3")
    listed = json.loads((out / "pictures.json").read_text())
    outside, own = tmp_path / "000-000.png", out / "000-009.png"
    for file in (outside, own, out / "grid-mine.png", out / "notes.txt"):
        file.write_bytes(b"mine")
    listed["pictures"] += [{"file": "../000-000.png"}, {"file": "notes.txt"}]
    (out / "pictures.json").write_text(json.dumps(listed))
    run(copied, "generate", *arguments, "n=1")
    assert {path.name for path in out.iterdir()} == {
        *("000-000.png", "grid.png", "pictures.json"),
        *("000-009.png", "grid-mine.png", "notes.txt"),  # not listed
    }
    assert outside.read_bytes() == b"mine"


def test_jobs_of_a_sweep_have_their_own_folders(copied, tmp_path):
    arguments = [f"prompt={PROMPT}", f"run={copied.prior}", "n=1", "-m"]
    run(copied, "generate", *arguments, "seed=0,1", f"out={tmp_path}/out")
    run(copied, "generate", *arguments, "seed=2")
    for folder, seed in (("out_0", 0), ("out_1", 1), (copied.prior / "samples_0", 2)):
        assert json.loads((tmp_path / folder / "pictures.json").read_text())["seed"] == seed


def test_image_prompt_is_continued(copied, tmp_path):
    photo, out = tmp_path / "photo.png", tmp_path / "out"
    Image.new("RGB", (50, 40), "red").save(photo)
    prompts = ["prompt=a small red circle", "prompt=a large blue ring"]
    through_latest = f"image_prompt={copied.logs}/prior/latest/photo.png"
    shutil.copy(photo, copied.prior)
    run(copied, "generate", *prompts, "n=1", through_latest, "rows=3", f"out={out}")
    assert set(images(out)) == {"000-000.png", "001-000.png", "grid.png"}
    record = record_of(out / "001-000.png")
    assert (record["image_prompt"], record["rows"]) == ("photo.png", 3)

    model = TextToImage.from_run(copied.prior)
    image_prompt = Image.open(photo).convert("RGB")
    ((continued,),) = model([PROMPT], image_prompt=image_prompt, rows=3)
    ((plain,),) = model([PROMPT], seed=1)
    assert continued.size == plain.size == (32, 32)
    assert continued.tobytes() != plain.tobytes()


def test_complete_lets_the_prior_write_the_caption(copied, tmp_path):
    settings = ["complete=true", "n=1", f"run={copied.prior}", "seed=2", f"out={tmp_path}"]
    stdout = run(copied, "generate", f"prompt={PROMPT}", *settings)
    record = json.loads((tmp_path / "pictures.json").read_text())
    (picture,) = record["pictures"]
    assert record["complete"] is True
    assert picture["beginning"] == PROMPT
    assert picture["prompt"].startswith(PROMPT)
    assert picture["prompt"] in stdout
    model = TextToImage.from_run(copied.prior)
    assert model.complete([PROMPT], seed=2) == [picture["prompt"]]


@pytest.mark.parametrize("kind", ["contrastive", "likelihood"])
def test_best_of_keeps_the_best_candidates(copied, tmp_path, kind):
    arguments = [f"prompt={PROMPT}", f"run={copied.prior}", "device=cpu"]
    best, everything = tmp_path / "best", tmp_path / "all"
    run(
        copied,
        "generate",
        *arguments,
        f"ranker={kind}",
        "n=2",
        "best_of=6",
        "batch_size=4",
        f"out={best}",
    )
    run(copied, "generate", *arguments, "n=6", f"out={everything}")
    record = json.loads((best / "pictures.json").read_text())
    assert record["best_of"] == 6
    assert "${" not in json.dumps(record["ranker"])
    first, second = record["pictures"]
    assert first["score"] >= second["score"]
    for chosen in (first, second):
        image = Image.open(best / chosen["file"])
        candidate = Image.open(everything / f"000-{chosen['candidate']:03}.png")
        assert image.tobytes() == candidate.tobytes()
        own = record_of(best / chosen["file"])
        assert (own["score"], own["best_of"], own["ranker"]) == (chosen["score"], 6, kind)


def test_settings_are_checked_before_a_caption_is_completed(copied, capsys):
    arguments = [f"prompt={PROMPT}", f"run={copied.prior}", "complete=true", "ranker=likelihood"]
    assert "smaller than n=8" in fail(copied, "generate", *arguments, "best_of=2")
    assert PROMPT not in capsys.readouterr().out


def test_best_of_without_a_ranker_is_refused(copied, tmp_path):
    arguments = [f"prompt={PROMPT}", f"run={copied.prior}", "best_of=9", "ranker=none"]
    assert "ranker=none" in fail(copied, "generate", *arguments)
    alone = make_home(tmp_path / "alone")
    shutil.copytree(copied.prior, alone.prior)
    line = fail(alone, "generate", f"prompt={PROMPT}", "best_of=9")
    assert "python src/train.py stage=ranker" in line


def test_two_commands_do_not_mix_their_images_in_one_folder(copied, tmp_path):
    out = tmp_path / "out"
    arguments = [f"prompt={PROMPT}", f"run={copied.prior}", "n=1"]
    with files.locked_folder(out, "in use", "wait"):
        line = fail(copied, "generate", *arguments, f"out={out}")
        assert f"another process generates images in {out}" in line
        assert not images(out)


def test_images_can_be_written_to_the_working_directory(copied, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(copied, "generate", f"prompt={PROMPT}", f"run={copied.prior}", "n=1", "out=.")
    assert set(images(tmp_path)) == {"000-000.png", "grid.png"}
