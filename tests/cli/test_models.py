"""What has been trained, in Python, elsewhere, exported, and with other quantizers."""

import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers.process import FRECHET, PROMPT, SAMPLES, SMALL, figures, pictures, run
from tilewright.pipeline import TextToImage

pytestmark = pytest.mark.slow


def test_in_python(trained):
    model = TextToImage.from_run(trained.prior)
    rows = model([PROMPT, "ein roter kreis 赤"], n=2, seed=3)
    assert [len(row) for row in rows] == [2, 2]
    assert all(isinstance(picture, Image.Image) for row in rows for picture in row)
    again = model([PROMPT, "ein roter kreis 赤"], n=2, seed=3)
    assert [[p.tobytes() for p in row] for row in rows] == [
        [p.tobytes() for p in row] for row in again
    ]


def test_a_pairs_likelihood(trained):
    model = TextToImage.from_run(trained.prior)
    images = torch.rand(2, 3, 32, 32)
    of_text, of_image = model.log_likelihood([PROMPT, "a blue ring"], images)
    assert of_text.shape == of_image.shape == (2,)
    assert (of_text < 0).all()
    assert (of_image < 0).all()


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


@pytest.mark.parametrize("quantizer", ["vq", "fsq"])
def test_all_commands_take_any_quantizer(quantizer, tmp_path):
    run(tmp_path, "train", "stage=dvae", f"model=dvae_{quantizer}", FRECHET, *SMALL)
    run(tmp_path, "train", "stage=prior", FRECHET, *SAMPLES, *SMALL)
    run(tmp_path, "eval", "metric=reconstruction", "metric.images=8", "device=cpu")
    assert {
        row["metric"] for row in figures(tmp_path / "logs" / "dvae" / "latest", "reconstruction")
    }
    run(tmp_path, "generate", f"prompt={PROMPT}", "n=2", f"out={tmp_path / 'out'}", "device=cpu")
    assert set(pictures(tmp_path / "out")) == {"000-000.png", "000-001.png", "grid.png"}


def test_an_exported_model_goes_wherever_a_run_does(copied, tmp_path):
    model, dvae, chooser = (tmp_path / name for name in ("model", "dvae", "ranker"))
    words = [f"run={copied.prior}", f"with_ranker={copied.ranker}", "captions=2", "n=1"]
    done = run(copied.folder, "export", *words, f"out={model}", "license=mit")
    assert str(model / "README.md") in done.stdout
    run(copied.folder, "export", f"run={copied.dvae}", f"out={dvae}")
    run(copied.folder, "export", f"run={copied.ranker}", f"out={chooser}")

    words = [f"prompt={PROMPT}", "n=2", "best_of=4", "device=cpu"]
    run(copied.folder, "generate", *words, f"run={copied.prior}", f"out={tmp_path / 'a'}")
    run(tmp_path, "generate", *words, f"run={model}", f"out={tmp_path / 'b'}")  # no runs there
    run(
        copied.folder,
        "generate",
        *words,
        f"run={model}",
        f"ranker.run={chooser}",
        f"out={tmp_path / 'c'}",
    )
    drawn = [
        [Image.open(tmp_path / out / f"000-00{n}.png").tobytes() for n in (0, 1)] for out in "abc"
    ]
    assert drawn[0] == drawn[1] == drawn[2]

    words = ["metric=alignment", "metric.captions=8", "device=cpu"]
    (line,) = run(copied.folder, "eval", *words, f"run={model}", status=1).stderr.splitlines()
    assert "data=NAME" in line
    run(copied.folder, "eval", *words, f"run={copied.prior}")
    run(copied.folder, "eval", *words, f"run={model}", "data=shapes", *SMALL[1:4])
    own, shared = (figures(folder, "alignment") for folder in (copied.prior, model))
    assert [row["value"] for row in own] == [row["value"] for row in shared]
    assert {row["data"] for row in shared} == {"shapes"}

    words = [f"dvae={dvae}", "run_name=on_shared", *SMALL, "~callbacks.frechet"]
    run(copied.folder, "train", "stage=prior", *words)
    kept = copied.folder / "logs" / "prior" / "on_shared" / "dvae" / "model.safetensors"
    assert load_file(kept).keys() == load_file(dvae / "model.safetensors").keys()
