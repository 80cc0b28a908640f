"""A training that begins with the weights of another."""

import csv
import shutil
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers import untrained
from helpers.command import command
from tilewright import TextToImage, runs
from tilewright.cli import app
from tilewright.errors import UserError
from tilewright.runs import finetuning
from tilewright.sharing.export import export

SHORT = [
    "trainer=cpu",
    "data=folder",
    "data.source.validation_fraction=0.3",
    "data.batch_size=4",
    "trainer.max_steps=20",
    "trainer.val_check_interval=10",
    "trainer.limit_val_batches=1",
]
SAMPLES = ["callbacks.samples.count=2", "~callbacks.frechet"]


def rate(value):
    """A constant one, so that it does not depend on how long the training is to be."""
    then = "model.learning_rate.then"
    return ["model.learning_rate.steps=1", f"{then}.start={value}", f"{then}.end={value}"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    logs = untrained.all_stages(folder)
    export(logs / "prior" / "untrained", folder / "model", name="model")
    return SimpleNamespace(
        folder=folder, data=folder / "data", logs=logs, pictures=folder / "pictures"
    )


def tune(home, name, *words, source=None):
    """A short training of a prior; its run."""
    place = f"data.source.path={home.pictures}"
    init = f"init={source or home.folder / 'model'}"
    words = ["experiment=finetune", *SHORT, *SAMPLES, place, init, *words, f"run_name={name}"]
    assert command("train", words, home) is None
    return home.logs / "prior" / name


def last(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_it_begins_with_the_weights_the_tokenizer_and_the_dvae_of_its_source(home):
    source = home.folder / "model"
    run = tune(home, "equal", *rate(0), "tokenizer.dropout=0.5")
    for here, there in ((run, source), (run / runs.DVAE, source / runs.DVAE)):
        own, weights = runs.load_weights(here), runs.load_weights(there)
        assert own.keys() == weights.keys()
        assert all(torch.equal(own[name], weights[name]) for name in weights)
    assert (run / runs.TOKENIZER).read_text() == (source / runs.TOKENIZER).read_text()
    config = runs.load_config(run)
    assert config.init == str(source)
    assert config.data.image_size == untrained.SIZE
    assert config.tokenizer.dropout == config.data.tokenizer.dropout == 0.5
    pictures = [TextToImage.from_run(model)(["a red circle"])[0][0] for model in (run, source)]
    assert pictures[0].tobytes() == pictures[1].tobytes()


def test_it_learns_and_shows_what_was_before(home):
    source = home.logs / "prior" / "untrained"
    run = tune(home, "learns", *rate(1e-2), source=source)
    with (run / "metrics.csv").open() as file:
        found = [row["validation/loss"] for row in csv.DictReader(file)]
    losses = [float(loss) for loss in found if loss]
    assert losses[1] < losses[0]
    images = torch.full((1, 3, 16, 16), 0.5)
    before, after = (
        sum(TextToImage.from_run(path).log_likelihood(["two stars"], images)).item()
        for path in (source, run)
    )
    assert after > before + 1
    with Image.open(run / "before_after.png") as sheet:
        assert sheet.width > 960
    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    assert [image.step for image in events.Images("samples/drawn")] == [0, 10, 20]


def test_it_resumes_with_the_same_bits_and_without_its_source(home, tmp_path):
    whole = tune(home, "whole", *rate(1e-3))
    source = shutil.copytree(home.folder / "model", tmp_path / "source")
    run = tune(home, "resumed", *rate(1e-3), "trainer.max_steps=10", source=source)
    shutil.rmtree(source)
    words = ["stage=prior", f"resume={run}", "trainer.max_steps=20"]
    assert command("train", words, home) is None
    expected, found = last(whole), last(run)
    assert found["global_step"] == 20
    for name, value in expected["state_dict"].items():
        assert torch.equal(value, found["state_dict"][name])
    before = [saved["callbacks"]["Samples"]["before"] for saved in (expected, found)]
    assert torch.equal(*before)
    sheets = [(path / "before_after.png").read_bytes() for path in (whole, run)]
    assert sheets[0] == sheets[1]


def test_the_newest_prior_is_begun_with_unless_one_is_named(home):
    first = tune(home, "first", *rate(0), "trainer.max_steps=1")
    second = tune(home, "second", *rate(0), "trainer.max_steps=1", source="true")
    assert runs.load_config(second).init == str(first.resolve())


@pytest.mark.parametrize("stage", ["dvae", "ranker"])
def test_other_stages_begin_with_weights_too(home, stage):
    source = home.logs / stage / "untrained"
    words = [f"stage={stage}", f"init={source}", f"data.source.path={home.pictures}", *rate(0)]
    if stage == "dvae":
        words.append("~callbacks.frechet")
    assert command("train", [*SHORT, *words, "run_name=again"], home) is None
    own, weights = runs.load_weights(home.logs / stage / "again"), runs.load_weights(source)
    assert all(torch.equal(own[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tokenizer.length=13"], ["tokenizer.length=12", "tokenizer.length=13"]),
        (["tokenizer.vocab_size=999"], ["vocab_size=280", "999"]),
        (["model.network.dim=32"], ["model.network.dim=16", "32"]),
        (["model.network.stream.grid=8"], ["stream.grid=4", "8"]),
        (["model=prior_medium"], ["model=prior_tiny", "model=prior_medium"]),
        (["data.image_size=32"], ["data.image_size=16", "32"]),
        (["dvae={logs}/dvae/untrained"], ["dvae", "leave"]),
        (["init={logs}/dvae/untrained"], ["stage=dvae", "stage=prior"]),
        (["init=nowhere"], ["there is no run nowhere"]),
        (["resume=true"], ["resume=", "init="]),
    ],
)
def test_another_network_tokenizer_or_grid_is_refused_by_name(home, words, expected):
    before = set(home.logs.rglob("*"))
    if not any("init=" in word for word in words):
        words = [f"init={home.folder / 'model'}", *words]
    words = [word.format(logs=home.logs) for word in words]
    place = f"data.source.path={home.pictures}"
    line = command("train", ["experiment=finetune", *SHORT, *SAMPLES, place, *words], home)
    assert line.startswith("error: ")
    assert "\n" not in line
    for word in expected:
        assert word in line
    assert set(home.logs.rglob("*")) == before


def composed(*words):
    with initialize_config_dir(str(app.CONF), version_base="1.3"):
        return compose("train", ["experiment=finetune", "data=folder", *words])


def test_a_source_that_would_run_code_is_refused_before_anything_is_built(home, tmp_path):
    source = shutil.copytree(home.folder / "model", tmp_path / "model")
    text = (source / "config.json").read_text()
    for place in ("tilewright.prior.Transformer", "tilewright.data.tokenizer.BytePairTokenizer"):
        (source / "config.json").write_text(text.replace(place, "os.system"))
        config = composed()
        with open_dict(config), pytest.raises(UserError, match=r"os\.system"):
            finetuning.begin_with(config, source, [])


def test_what_may_differ_is_kept(home):
    words = ["tokenizer.dropout=0.2", "model.network.checkpointing=true"]
    config = composed(*words)
    finetuning.begin_with(config, home.folder / "model", map(runs.key_of, words))
    assert config.tokenizer == {**untrained.TOKENIZER, "dropout": 0.2}
    network = {**untrained.NETWORKS["prior"], "checkpointing": True}
    assert OmegaConf.to_container(config.model.network) == network
