"""Priors on a frozen text encoder through all commands, with a tiny random T5."""

import json
import re
import shutil

import pytest
import torch

from helpers.command import SMALL, fail, images, make_home, results, run, step
from helpers.pretrained import save_t5
from tilewright import TextToImage, runs
from tilewright.errors import UserError

PROMPTS = ["prompt=a red circle", "prompt=two gold stars on the left"]
SETTINGS = ["model=prior_small", "~callbacks.frechet", "callbacks.samples.count=1"]


@pytest.fixture(scope="module")
def home(trained, tmp_path_factory):
    """A prior that reads features, and its encoder in `home.t5`."""
    home = make_home(tmp_path_factory.mktemp("encoder"))
    shutil.copytree(trained.dvae, home.dvae, symlinks=True)
    home.data.symlink_to(trained.data)
    home.t5 = home.folder / "t5"
    home.t5.mkdir()
    save_t5(home.t5)
    (home.t5 / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    home.settings = ["caption=encoder", f"caption.path={home.t5}", "caption.length=32", *SETTINGS]
    home.stdout = run(home, "train", "stage=prior", "run_name=first", *home.settings, *SMALL)
    return home


@pytest.fixture(scope="module")
def model(home):
    run(home, "export", f"run={home.prior}", f"out={home.folder / 'model'}", "captions=2", "n=1")
    return home.folder / "model"


@pytest.fixture
def hidden_encoder(home):
    """The encoder is not where the run names it."""
    moved = home.t5.rename(home.folder / "moved")
    yield moved
    moved.rename(home.t5)


def test_a_run_names_its_encoder_and_holds_its_tokenizer(home):
    from omegaconf import OmegaConf

    config = OmegaConf.load(home.prior / "config.yaml")
    assert config.tokenizer.path == str(home.t5)
    assert config.tokenizer.width == config.model.network.stream.features == 16
    assert len(config.tokenizer.digest) == 16
    assert (home.prior / "tokenizer.json").is_file()
    assert not re.search(r"text \d", home.stdout)  # text is not predicted


def test_a_relative_encoder_is_found_from_another_folder(home, monkeypatch):
    monkeypatch.chdir(home.folder)
    settings = ["caption=encoder", "caption.path=t5", *home.settings[2:], "trainer.max_steps=1"]
    small = [word for word in SMALL if "max_steps" not in word]
    run(home, "train", "stage=prior", "run_name=relative", *settings, *small)
    config = runs.load_config(home.logs / "prior" / "relative")
    assert config.tokenizer.path == str(home.t5)


def test_generate_draws_images_that_depend_on_the_caption(home, tmp_path):
    for name, guidance in (("plain", 1), ("guided", 3)):
        run(home, "generate", f"run={home.prior}", f"out={tmp_path / name}", *PROMPTS,
            f"guidance={guidance}", "n=2")  # fmt: skip
    plain, guided = images(tmp_path / "plain"), images(tmp_path / "guided")
    assert plain.keys() == guided.keys()
    assert plain != guided


def test_eval_and_likelihood_read_features(home):
    run(home, "eval", "metric=alignment", f"run={home.prior}", "images=4")
    assert results(home.prior, "alignment")
    model = TextToImage.from_run(home.prior)
    caption, image = model.log_likelihood(["a red circle"], torch.rand(1, 3, 32, 32))
    assert caption.isnan().all()
    assert image.isfinite().all()
    with pytest.raises(UserError):
        model.complete(["a red"])


@pytest.mark.slow
def test_a_resumed_run_equals_one_without_interruption(home):
    schedule = "model.learning_rate.then.steps=100"  # does not follow trainer.max_steps
    arguments = [schedule, *home.settings, *(word for word in SMALL if "max_steps" not in word)]
    for name, steps in (("once", 5), ("twice", 3)):
        run(
            home,
            "train",
            "stage=prior",
            f"run_name={name}",
            f"trainer.max_steps={steps}",
            *arguments,
        )
    twice = home.logs / "prior" / "twice"
    run(home, "train", "stage=prior", f"resume={twice}", "trainer.max_steps=5")
    once, resumed = (
        torch.load(home.logs / "prior" / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("once", "twice")
    )
    assert once["global_step"] == resumed["global_step"] == 5
    for name, value in once["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name


def test_a_resumed_run_keeps_its_encoder_which_may_move(home, hidden_encoder):
    resume = ["stage=prior", f"resume={home.prior}", "caption=encoder"]
    error = fail(home, "train", *resume, "caption.length=16")
    assert "caption.length=16 cannot change a resumed run" in error
    moved = home.logs / "prior" / "moved"
    shutil.copytree(home.prior, moved)
    resume = ["stage=prior", f"resume={moved}", "caption=encoder", f"caption.path={hidden_encoder}"]
    run(home, "train", *resume, "trainer.max_steps=7")
    assert step(moved / "checkpoints" / "last.ckpt") == 7


def test_an_exported_model_generates_the_same_images_and_names_its_encoder(home, model):
    card = (model / "README.md").read_text()
    assert "text encoder `t5` (license: apache-2.0)" in card
    assert str(home.folder) not in card
    expected = TextToImage.from_run(home.prior)(["a red circle"], n=2)[0]
    shared = TextToImage.from_pretrained(model)(["a red circle"], n=2)[0]
    assert [image.tobytes() for image in shared] == [image.tobytes() for image in expected]


def test_a_model_is_fine_tuned_and_keeps_its_encoder(home, model):
    run(
        home, "train", "experiment=finetune", f"init={model}", "run_name=tuned", *SETTINGS[1:],
        *SMALL,
    )  # fmt: skip
    tuned = home.logs / "prior" / "tuned"
    assert step(tuned / "checkpoints" / "last.ckpt") == 6
    error = fail(home, "train", "experiment=finetune", f"init={model}", "caption=joint")
    assert "need caption=encoder: leave caption=joint out" in error
    error = fail(
        home, "train", "experiment=finetune", f"init={model}", "caption=encoder",
        "caption.padding_side=right",
    )  # fmt: skip
    assert "need caption.padding_side=left" in error


def test_a_moved_encoder_is_one_line_with_the_way_out(home, model, hidden_encoder):
    error = fail(home, "generate", f"run={home.prior}", "prompt=a", f"out={home.folder / 'x'}")
    assert f"there is no folder {home.t5} of a text encoder: download it" in error
    config = json.loads((model / "config.json").read_text())
    config["tokenizer"]["path"] = str(hidden_encoder)
    copied = shutil.copytree(model, home.folder / "copied")
    (copied / "config.json").write_text(json.dumps(config))
    assert TextToImage.from_pretrained(copied)(["a red circle"])


def test_other_weights_of_the_encoder_are_refused(home, model, hidden_encoder):
    home.t5.mkdir()
    save_t5(home.t5, seed=1)
    try:
        error = fail(home, "generate", f"run={home.prior}", "prompt=a", f"out={home.folder / 'x'}")
        assert "has other weights than the text encoder" in error
    finally:
        shutil.rmtree(home.t5)


def test_encode_fills_the_cache_that_training_reads(home, tmp_path):
    sizes = [word for word in SMALL if word.startswith("data.source")]
    printed = run(home, "encode", f"dvae={home.dvae}", *home.settings[:3], *sizes)
    (line,) = (line for line in printed.splitlines() if line.startswith("Features of train"))
    folder = line.rpartition(" ")[2]
    assert folder in {str(path) for path in home.data.glob("image_tokens/captions/*")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["caption=encoder"],
            "error: caption.path has no value: set it on the command line, caption.path=",
        ),
        (["caption=encoder", "caption.path=/gone"], "there is no folder /gone of a text encoder"),
        (["caption=encoder", "caption.path=x", "tokenizer=bpe"], "has its own tokenizer"),
        (["tokenizer=pretrained"], "error: tokenizer.path has no value"),
        (["tokenizer=pretrained", "tokenizer.path=/gone"], "/gone is not a tokenizer"),
    ],
)
def test_impossible_settings_are_one_line(home, arguments, message):
    assert message in fail(home, "train", "stage=prior", f"dvae={home.dvae}", *arguments)


@pytest.mark.slow
def test_a_prior_with_a_pretrained_tokenizer_is_self_contained(home, tmp_path):
    source = shutil.copy(home.t5 / "tokenizer.json", tmp_path / "tokenizer.json")
    tokenizer = ["tokenizer=pretrained", f"tokenizer.path={source}", "tokenizer.length=16"]
    run(home, "train", "stage=prior", "run_name=text", *tokenizer, *SETTINGS, *SMALL)
    (tmp_path / "tokenizer.json").unlink()
    text = home.logs / "prior" / "text"
    model = TextToImage.from_run(text)
    assert model.prior.stream.text_vocab == model.tokenizer.vocab_size > 30
    assert model(["a red circle"])
    run(home, "train", "stage=prior", f"resume={text}", "trainer.max_steps=7")
    run(home, "export", f"run={text}", f"out={tmp_path / 'model'}", "captions=1")
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()
