"""Trained runs in Python, in another place, exported, and with other quantizers."""

import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers.command import PROMPT, SMALL, fail, images, make_home, results, run
from tilewright.pipeline import TextToImage


def test_pipeline_repeats_for_a_seed(trained):
    model = TextToImage.from_run(trained.prior)
    captions = [PROMPT, "ein roter kreis 赤"]
    rows = model(captions, n=2, seed=3)
    assert [len(row) for row in rows] == [2, 2]
    assert all(isinstance(image, Image.Image) for row in rows for image in row)
    again = model(captions, n=2, seed=3)
    pixels, pixels_again = (
        [[image.tobytes() for image in row] for row in grid] for grid in (rows, again)
    )
    assert pixels == pixels_again


def test_log_likelihood_of_pairs_is_negative(trained):
    model = TextToImage.from_run(trained.prior)
    pairs = [PROMPT, "a blue ring"], torch.rand(2, 3, 32, 32)
    of_text, of_image = model.log_likelihood(*pairs)
    assert of_text.shape == of_image.shape == (2,)
    assert (of_text < 0).all()
    assert (of_image < 0).all()


def test_copied_prior_generates_without_its_dvae_run(trained, copied, tmp_path):
    copy = shutil.copytree(copied.prior, tmp_path / "elsewhere")
    shutil.rmtree(copied.dvae)
    ((image,),) = TextToImage.from_run(copy)([PROMPT], seed=2)
    ((original,),) = TextToImage.from_run(trained.prior)([PROMPT], seed=2)
    assert image.tobytes() == original.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", ["vq", "fsq"])
def test_all_commands_accept_any_quantizer(quantizer, home):
    small = ["run_name=first", "~callbacks.frechet", *SMALL]
    run(home, "train", "stage=dvae", f"model=dvae_{quantizer}", *small)
    run(home, "train", "stage=prior", "~callbacks.samples", *small)
    frechet = "metric.frechet=false"
    run(home, "eval", "metric=reconstruction", "metric.images=8", frechet, "device=cpu")
    assert results(home.dvae, "reconstruction")
    out = home.folder / "out"
    run(home, "generate", f"prompt={PROMPT}", "n=2", f"out={out}", "device=cpu")
    assert set(images(out)) == {"000-000.png", "000-001.png", "grid.png"}


@pytest.mark.slow
def test_all_commands_accept_a_vqgan_with_a_discriminator(home, tmp_path):
    vqgan = ["model=dvae_vqgan", "loss=adversarial", "model.network.widths=[8,8,8,8]"]
    vqgan += ["loss.adversarial.discriminator.width=8", "callbacks.frechet.images=8"]
    stdout = run(home, "train", "stage=dvae", "run_name=first", *vqgan, *SMALL)
    assert "validation/fd_efficientnet_lite2" in metric_names(home.dvae)
    assert {"train/generator", "train/discriminator"} <= metric_names(home.dvae)
    assert "perceptual" in stdout
    fine_tuned = ["stage=dvae", "run_name=second", f"init={home.dvae}", "~callbacks.frechet"]
    run(home, "train", *fine_tuned, *SMALL)
    run(home, "train", "stage=prior", "run_name=first", "~callbacks.samples", "~callbacks.frechet",
        f"dvae={home.dvae}", *SMALL)  # fmt: skip
    out = tmp_path / "model"
    run(home, "export", f"run={home.prior}", "captions=1", "n=1", f"out={out}")
    judged = ["metric=fid", "images=4", "device=cpu", "data=shapes", *SMALL[1:4]]
    for folder in (home.prior, out):  # an exported model remembers the network, too
        warning = "efficientnet_lite0 is in the loss of the dVAE"
        arguments = [f"run={folder}", *judged]
        assert warning in run(home, "eval", "extractor=efficientnet_lite0", *arguments)
        assert warning not in run(home, "eval", "extractor=efficientnet_lite2", *arguments)


def metric_names(folder):
    header, *_ = (folder / "metrics.csv").read_text().splitlines()
    return set(header.split(","))


@pytest.fixture
def models(copied, tmp_path):
    """Folders of the exported prior with its ranker, the dVAE, and the ranker."""
    prior, dvae, ranker = (tmp_path / name for name in ("model", "dvae", "ranker"))
    samples = ["captions=2", "n=1", "license=mit"]
    with_ranker = f"with_ranker={copied.ranker}"
    stdout = run(copied, "export", f"run={copied.prior}", with_ranker, *samples, f"out={prior}")
    assert str(prior / "README.md") in stdout
    run(copied, "export", f"run={copied.dvae}", f"out={dvae}")
    run(copied, "export", f"run={copied.ranker}", f"out={ranker}")
    return prior, dvae, ranker


def test_exported_model_generates_the_same_images(copied, models, tmp_path):
    prior, _, ranker = models
    empty = make_home(tmp_path / "empty")  # without any run

    def generate(home, name, *arguments):
        settings = [f"prompt={PROMPT}", "n=2", "best_of=4", "device=cpu"]
        run(home, "generate", *settings, *arguments, f"out={tmp_path / name}")
        return [Image.open(tmp_path / name / f"000-00{i}.png").tobytes() for i in (0, 1)]

    original = generate(copied, "a", f"run={copied.prior}")
    assert generate(empty, "b", f"run={prior}") == original
    assert generate(copied, "c", f"run={prior}", f"ranker.run={ranker}") == original


def test_exported_model_is_measured_on_named_data(copied, models):
    prior, _, _ = models
    arguments = ["metric=alignment", "metric.captions=8", "device=cpu"]
    assert "data=NAME" in fail(copied, "eval", *arguments, f"run={prior}")
    run(copied, "eval", *arguments, f"run={copied.prior}")
    run(copied, "eval", *arguments, f"run={prior}", "data=shapes", *SMALL[1:4])
    own, shared = (results(folder, "alignment") for folder in (copied.prior, prior))
    assert [row["value"] for row in own] == [row["value"] for row in shared]
    assert {row["data"] for row in shared} == {"shapes"}


def test_prior_is_trained_on_an_exported_dvae(copied, models):
    _, dvae, _ = models
    less = ["~callbacks.frechet", "~callbacks.samples"]
    run(copied, "train", "stage=prior", f"dvae={dvae}", "run_name=second", *SMALL, *less)
    kept = copied.prior.with_name("second") / "dvae" / "model.safetensors"
    assert load_file(kept).keys() == load_file(dvae / "model.safetensors").keys()
