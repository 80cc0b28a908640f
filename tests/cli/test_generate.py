"""What generate draws, and that it can be repeated."""

import json
import shutil

import pytest
from PIL import Image

from helpers.process import PROMPT, pictures, run
from tilewright.pipeline import TextToImage

pytestmark = pytest.mark.slow


def test_generate_draws_and_repeats(copied, tmp_path):
    words = [f"prompt={PROMPT}", "n=2", f"run={copied.prior}", "device=cpu"]
    folders = [tmp_path / name for name in ("a", "b", "c")]
    run(copied.folder, "generate", *words, f"out={folders[0]}", "seed=1")
    run(copied.folder, "generate", *words, f"out={folders[1]}", "seed=1")
    first, second = map(pictures, folders[:2])
    assert set(first) == {"000-000.png", "000-001.png", "grid.png"}
    assert first == second
    assert first["000-000.png"] != first["000-001.png"]
    record = json.loads((folders[0] / "pictures.json").read_text())
    assert record["seed"] == 1
    assert record["run"] == str(copied.prior.resolve())
    assert record["sampling"]["temperature"] == 1.0
    assert [picture["file"] for picture in record["pictures"]] == ["000-000.png", "000-001.png"]
    assert {picture["prompt"] for picture in record["pictures"]} == {PROMPT}
    with (
        Image.open(folders[0] / "000-001.png") as picture,
        Image.open(folders[0] / "grid.png") as grid,
    ):
        told = [json.loads(image.text["tilewright"]) for image in (picture, grid)]
    shared = {"run": copied.prior.name, "seed": 1, "sampling": record["sampling"]}
    assert told[0] == {**shared, "prompt": PROMPT, "candidate": 1}
    assert told[1] == {**shared, "pictures": record["pictures"]}


def test_generate_goes_on_with_a_picture(copied, tmp_path):
    given = tmp_path / "photo.png"
    Image.new("RGB", (50, 40), "red").save(given)
    out = tmp_path / "out"
    prompts = 'prompt=["a small red circle","a large blue ring"]'
    run(copied.folder, "generate", prompts, "n=1", f"image_prompt={given}", "rows=3", f"out={out}")
    assert set(pictures(out)) == {"000-000.png", "001-000.png", "grid.png"}
    with Image.open(out / "001-000.png") as picture:
        told = json.loads(picture.text["tilewright"])
    assert (told["image_prompt"], told["rows"]) == ("photo.png", 3)

    model = TextToImage.from_run(copied.prior)
    ((picture,),) = model([PROMPT], image_prompt=Image.open(given).convert("RGB"), rows=3)
    ((other,),) = model([PROMPT], seed=1)
    assert picture.size == other.size == (32, 32)
    assert picture.tobytes() != other.tobytes()


def test_generate_carries_a_caption_on(copied, tmp_path):
    words = [f"prompt={PROMPT}", "complete=true", "n=1", f"run={copied.prior}", "seed=2"]
    done = run(copied.folder, "generate", *words, f"out={tmp_path / 'out'}")
    record = json.loads((tmp_path / "out" / "pictures.json").read_text())
    (picture,) = record["pictures"]
    assert picture["prompt"].startswith(PROMPT)
    assert picture["prompt"] in done.stdout
    model = TextToImage.from_run(copied.prior)
    assert model.complete([PROMPT], seed=2) == [picture["prompt"]]


@pytest.mark.parametrize("kind", ["contrastive", "likelihood"])
def test_generate_keeps_the_best(copied, tmp_path, kind):
    words = [f"prompt={PROMPT}", f"run={copied.prior}", "device=cpu", f"ranker={kind}"]
    run(
        copied.folder,
        "generate",
        *words,
        "n=2",
        "best_of=6",
        "batch_size=4",
        f"out={tmp_path / 'best'}",
    )
    run(copied.folder, "generate", *words, "n=6", f"out={tmp_path / 'all'}")
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


def test_best_of_without_a_ranker_is_one_line(copied, tmp_path):
    words = [f"prompt={PROMPT}", f"run={copied.prior}", "best_of=9"]
    done = run(copied.folder, "generate", *words, "ranker=none", status=1)
    (line,) = done.stderr.splitlines()
    assert "ranker=none" in line
    shutil.copytree(copied.prior, tmp_path / "logs" / "prior" / "alone")
    done = run(tmp_path, "generate", f"prompt={PROMPT}", "best_of=9", status=1)
    (line,) = done.stderr.splitlines()
    assert "python src/train.py stage=ranker" in line


def test_image_prompt_that_is_no_picture_is_one_line(copied, tmp_path):
    done = run(
        copied.folder,
        "generate",
        f"prompt={PROMPT}",
        f"image_prompt={tmp_path / 'none.png'}",
        status=1,
    )
    (line,) = done.stderr.splitlines()
    assert "none.png" in line
