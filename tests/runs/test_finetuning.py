"""Training that starts from the weights of a run or model."""

import csv
import dataclasses
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers import untrained
from helpers.command import fail, run
from tilewright import TextToImage, runs
from tilewright.cli import app
from tilewright.dvae import Gaussian, Laplace, LogitLaplace
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
    """Returns settings of a constant learning rate, whatever the length of the training."""
    then = "model.learning_rate.then"
    return ["model.learning_rate.steps=1", f"{then}.start={value}", f"{then}.end={value}"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    logs = untrained.all_stages(folder)
    export(logs / "prior" / "untrained", folder / "model", name="model")
    return SimpleNamespace(folder=folder, data=folder / "data", logs=logs, images=folder / "images")


def finetune(home, name, *settings, source=None):
    """Fine-tunes a prior shortly, and returns its run."""
    path = f"data.source.path={home.images}"
    init = f"init={source or home.folder / 'model'}"
    arguments = ["experiment=finetune", *SHORT, *SAMPLES, path, init, *settings]
    run(home, "train", *arguments, f"run_name={name}")
    return home.logs / "prior" / name


def last_checkpoint(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_run_recommends_the_sampling_of_its_source(home, tmp_path):
    source, prior = tmp_path / "model", home.logs / "prior" / "untrained"
    sampling = {"temperature": 0.3, "top_k": 5, "guidance": 2}
    export(prior, source, name="model", sampling=sampling)
    config = composed("sampling.temperature=0.9")
    finetuning.adopt(config, source, ["sampling.temperature"])
    expected = {"temperature": 0.9, "top_k": 5, "top_p": None, "guidance": 2}
    assert {key: config.sampling[key] for key in expected} == expected


def test_run_keeps_the_image_dropout_of_a_source_that_records_it(home, tmp_path):
    source = shutil.copytree(home.folder / "model", tmp_path / "model")
    config = composed()
    default = config.model.image_dropout
    finetuning.adopt(config, source, [])
    assert config.model.image_dropout == default > 0
    saved = runs.load_config(source)
    saved.model.image_dropout = 0.0
    runs.save_network(source, saved, runs.load_weights(source))
    finetuning.adopt(config, source, ["model.image_dropout"])
    assert config.model.image_dropout == default
    finetuning.adopt(config, source, [])
    assert config.model.image_dropout == 0


def test_image_dropout_of_a_stranger_builds_nothing(home, tmp_path):
    source = shutil.copytree(home.folder / "model", tmp_path / "model")
    saved = runs.load_config(source)
    saved.model.image_dropout = {"_target_": "os.system", "command": "true"}
    runs.save_network(source, saved, runs.load_weights(source))
    with pytest.raises(UserError, match=r"model\.image_dropout in .* is not"):
        finetuning.adopt(composed(), source, [])


def test_run_starts_with_the_weights_tokenizer_and_dvae_of_its_source(home):
    source = home.folder / "model"
    tuned = finetune(home, "equal", *rate(0), "tokenizer.dropout=0.5")
    for here, there in ((tuned, source), (tuned / runs.DVAE, source / runs.DVAE)):
        own, weights = runs.load_weights(here), runs.load_weights(there)
        assert own.keys() == weights.keys()
        assert all(torch.equal(own[name], weights[name]) for name in weights)
    assert (tuned / runs.TOKENIZER).read_text() == (source / runs.TOKENIZER).read_text()
    config = runs.load_config(tuned)
    assert config.init == str(source)
    assert config.data.image_size == untrained.SIZE
    assert config.tokenizer.dropout == config.data.tokenizer.dropout == 0.5
    images = [TextToImage.from_run(model)(["a red circle"])[0][0] for model in (tuned, source)]
    assert images[0].tobytes() == images[1].tobytes()


def test_training_improves_and_shows_samples_of_before(home):
    source = home.logs / "prior" / "untrained"
    tuned = finetune(home, "learns", *rate(1e-2), source=source)
    with (tuned / "metrics.csv").open() as file:
        column = [row["validation/loss"] for row in csv.DictReader(file)]
    losses = [float(loss) for loss in column if loss]
    assert losses[1] < losses[0]
    images = torch.full((1, 3, 16, 16), 0.5)
    before, after = (
        sum(TextToImage.from_run(path).log_likelihood(["two stars"], images)).item()
        for path in (source, tuned)
    )
    assert after > before + 1
    with Image.open(tuned / "before_after.png") as sheet:
        assert sheet.width > 960
    events = EventAccumulator(str(tuned), size_guidance={"images": 0}).Reload()
    assert [image.step for image in events.Images("samples/generated")] == [0, 10, 20]


def test_resumed_training_has_the_same_bits_without_its_source(home, tmp_path):
    uninterrupted = finetune(home, "uninterrupted", *rate(1e-3))
    source = shutil.copytree(home.folder / "model", tmp_path / "source")
    resumed = finetune(home, "resumed", *rate(1e-3), "trainer.max_steps=10", source=source)
    shutil.rmtree(source)
    run(home, "train", "stage=prior", f"resume={resumed}", "trainer.max_steps=20")
    expected, actual = last_checkpoint(uninterrupted), last_checkpoint(resumed)
    assert actual["global_step"] == 20
    for name, value in expected["state_dict"].items():
        assert torch.equal(value, actual["state_dict"][name])
    before = [saved["callbacks"]["Samples"]["before"] for saved in (expected, actual)]
    assert torch.equal(*before)
    sheets = [(path / "before_after.png").read_bytes() for path in (uninterrupted, resumed)]
    assert sheets[0] == sheets[1]


def test_newest_prior_is_the_default_source(home):
    first = finetune(home, "first", *rate(0), "trainer.max_steps=1")
    second = finetune(home, "second", *rate(0), "trainer.max_steps=1", source="true")
    assert runs.load_config(second).init == str(first.resolve())


@pytest.mark.parametrize("stage", ["dvae", "ranker"])
def test_other_stages_start_from_weights_too(home, stage):
    source = home.logs / stage / "untrained"
    settings = [f"stage={stage}", f"init={source}", f"data.source.path={home.images}", *rate(0)]
    if stage == "dvae":
        settings.append("~callbacks.frechet")
    run(home, "train", *SHORT, *settings, "run_name=again")
    own, weights = runs.load_weights(home.logs / stage / "again"), runs.load_weights(source)
    assert all(torch.equal(own[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["tokenizer.length=13"], ["tokenizer.length=12", "tokenizer.length=13"]),
        (["tokenizer.vocab_size=999"], ["vocab_size=280", "999"]),
        (["model.network.dim=32"], ["model.network.dim=16", "32"]),
        (["model.network.stream.grid=8"], ["stream.grid=4", "8"]),
        (["model=prior_medium"], ["model=prior_tiny", "model=prior_medium"]),
        (["model.network={{dim: 32}}"], ["contains its network: leave model.network=… out"]),
        (["data.image_size=32"], ["data.image_size=16", "32"]),
        (["dvae={logs}/dvae/untrained"], ["dvae", "leave"]),
        (["init={logs}/dvae/untrained"], ["stage=dvae", "stage=prior"]),
        (["init=nowhere"], ["there is no run nowhere"]),
        (["resume=true"], ["resume=", "init="]),
    ],
)
def test_setting_that_contradicts_the_weights_is_refused_by_name(home, settings, expected):
    before = set(home.logs.rglob("*"))
    if not any("init=" in setting for setting in settings):
        settings = [f"init={home.folder / 'model'}", *settings]
    settings = [setting.format(logs=home.logs) for setting in settings]
    path = f"data.source.path={home.images}"
    line = fail(home, "train", "experiment=finetune", *SHORT, *SAMPLES, path, *settings)
    for part in expected:
        assert part in line
    assert set(home.logs.rglob("*")) == before


def test_another_likelihood_than_that_of_the_weights_is_refused(home):
    source = home.logs / "dvae" / "untrained"
    path = f"data.source.path={home.images}"
    other = {"logit_laplace": "gaussian", "gaussian": "logit_laplace"}[
        runs.load_config(source).choices.get("likelihood", "gaussian")
    ]
    settings = [*SHORT, path, "stage=dvae", f"init={source}", f"likelihood={other}"]
    line = fail(home, "train", *settings)
    assert f"the weights of init={source} have a likelihood of their own" in line
    assert f"leave likelihood={other} out" in line


VQGAN = {
    "_target_": "tilewright.dvae.VQGAN",
    "image_size": 16,
    "grid": 8,
    "num_tokens": 8,
    "code_dim": 4,
    "channels": 8,
    "widths": [8, 8],
    "attention": [],
    "groups": 4,
}


def write_dvae(folder, network):
    """Writes a converted dVAE whose settings leave out its likelihood."""
    settings = {"stage": "dvae", "choices": {"model": "taming", "family": "taming"}}
    config = OmegaConf.create({**settings, "model": {"network": network}})
    runs.save_network(folder, config, instantiate(network).state_dict())
    return folder


def adopted_dvae(source, *overrides):
    """Returns the configuration of a new run from the weights of a dVAE."""
    with initialize_config_dir(str(app.CONF), version_base="1.3"):
        config = compose("train", [*overrides, "run=x", "run_name=x", "data.source.path=x"])
    with open_dict(config):
        config.choices = {"data": "folder", "model": "x", "likelihood": "gaussian"}
        finetuning.adopt(config, source, map(runs.override_key, overrides))
    return OmegaConf.create(OmegaConf.to_container(config, resolve=True))


RECIPE = ["experiment=dvae_vqgan_gpu", "data=folder"]


@pytest.mark.parametrize("pixels", ["signed", "unit"])
@pytest.mark.parametrize(
    ("typed", "likelihood"),
    [
        ([], Gaussian(sigma=0.354)),
        (["likelihood.sigma=0.2"], Gaussian(sigma=0.2)),
        (["likelihood=laplace", "~likelihood.sigma"], Laplace(scale=0.1)),
    ],
)
def test_converted_weights_are_trained_with_the_likelihood_of_the_recipe(
    tmp_path, caplog, pixels, typed, likelihood
):
    caplog.set_level("INFO")
    source = write_dvae(tmp_path / "vqgan", {**VQGAN, "pixels": pixels})
    config = adopted_dvae(source, *RECIPE, *typed)
    network = instantiate(config.model.network)
    assert network.likelihood == dataclasses.replace(likelihood, maps=pixels)
    assert network.likelihood == instantiate(config.likelihood)
    runs.load_into(network, runs.load_weights(source), source)
    maps = torch.randn(2, 3, 16, 16)
    published = runs.load_network(source).likelihood
    assert torch.equal(network.likelihood.image(maps), published.image(maps))
    assert (f"likelihood of {source} is" in caplog.text) == (network.likelihood != published)


def test_the_meaning_of_the_decoders_output_cannot_be_changed(tmp_path):
    source = write_dvae(tmp_path / "vqgan", VQGAN)
    for typed in ("likelihood.maps=unit", "likelihood.maps=logits"):
        with pytest.raises(UserError, match=rf"need likelihood\.maps=signed: leave {typed} out"):
            adopted_dvae(source, *RECIPE, typed)


def test_a_run_records_every_network_in_the_losses_of_its_weights(tmp_path):
    source = write_dvae(tmp_path / "dvae", VQGAN)
    assert runs.loss_networks(adopted_dvae(source, "stage=dvae", "data=folder")) == []
    saved = OmegaConf.load(source / runs.MODEL_CONFIG)
    saved.perceptual_network = "efficientnet_lite0"  # the key of earlier versions
    (source / runs.MODEL_CONFIG).write_text(json.dumps(OmegaConf.to_container(saved)))
    assert runs.loss_networks(runs.load_config(source)) == ["efficientnet_lite0"]
    words = ["stage=dvae", "data=folder", "loss=perceptual"]
    config = adopted_dvae(source, *words, "loss.perceptual.network=efficientnet_lite2")
    networks = ["efficientnet_lite0", "efficientnet_lite2"]
    assert runs.loss_networks(config) == networks
    runs.save_network(tmp_path / "exported", config, runs.load_weights(source))
    exported = tmp_path / "exported"
    assert runs.loss_networks(runs.load_config(exported)) == networks
    assert runs.loss_networks(adopted_dvae(exported, "stage=dvae", "data=folder")) == networks


def test_weights_of_six_maps_keep_their_likelihood(tmp_path, caplog):
    caplog.set_level("INFO")
    network = {key: value for key, value in untrained.NETWORKS["dvae"].items() if key[0] != "l"}
    source = write_dvae(tmp_path / "openai", network)
    config = adopted_dvae(source, *RECIPE)
    assert instantiate(config.model.network).likelihood == LogitLaplace()
    assert instantiate(config.likelihood) == LogitLaplace()
    assert "likelihood" not in config.choices
    assert f"The weights of {source} keep their likelihood" in caplog.text
    with pytest.raises(UserError, match=r"leave likelihood\.sigma=0\.2 out"):
        adopted_dvae(source, *RECIPE, "likelihood.sigma=0.2")


def test_other_data_and_another_image_size_are_logged(home, caplog):
    caplog.set_level("INFO")
    config, source = composed(data="shapes"), home.logs / "prior" / "untrained"
    finetuning.adopt(config, source, [])
    assert f"{source} was trained on other data: data=folder" in caplog.text
    assert "data.image_size=32 becomes 16" in caplog.text


def test_unknown_data_of_a_converted_model_are_not_logged_as_others(home, tmp_path, caplog):
    caplog.set_level("INFO")
    source = shutil.copytree(home.folder / "model", tmp_path / "model")
    saved = runs.load_config(source)
    saved.choices = {"model": "some_family"}
    runs.save_network(source, saved, runs.load_weights(source))
    finetuning.adopt(composed(), source, [])
    assert f"Starting from the weights of {source}" in caplog.text
    assert "other data" not in caplog.text


def composed(*overrides, data="folder"):
    with initialize_config_dir(str(app.CONF), version_base="1.3"):
        return compose("train", ["experiment=finetune", f"data={data}", *overrides])


def test_source_that_would_run_code_is_refused_before_it_is_built(home, tmp_path):
    source = shutil.copytree(home.folder / "model", tmp_path / "model")
    text = (source / "config.json").read_text()
    for target in ("tilewright.prior.Transformer", "tilewright.data.BytePairTokenizer"):
        assert target in text
        (source / "config.json").write_text(text.replace(target, "os.system"))
        config = composed()
        with open_dict(config), pytest.raises(UserError, match=r"os\.system"):
            finetuning.adopt(config, source, [])


def with_choices(config):
    """Adds the options that training records."""
    with open_dict(config):
        config.choices = {"data": "folder", "model": "prior_modern", "tokenizer": "bpe"}
        config.choices.caption = "joint"
    return config


def test_a_run_records_the_options_of_its_weights(home):
    config = with_choices(composed())
    finetuning.adopt(config, home.folder / "model", [])
    assert config.choices == {"data": "folder", "model": "prior_tiny", "caption": "joint"}


def write_encoded(home, folder):
    """Writes the exported model as if it read the features of a text encoder."""
    shutil.copytree(home.folder / "model", folder)
    saved = OmegaConf.load(folder / "config.json")
    target = "tilewright.data.CaptionEncoder"
    saved.tokenizer = {"_target_": target, "path": "/t5", "length": 12, "width": 4}
    saved.choices.caption = "encoder"
    (folder / "config.json").write_text(json.dumps(OmegaConf.to_container(saved)))
    return folder


def test_a_run_records_that_its_source_reads_a_text_encoder(home, tmp_path):
    config = with_choices(composed())
    finetuning.adopt(config, write_encoded(home, tmp_path / "encoded"), [])
    assert config.choices.caption == "encoder"
    assert config.tokenizer == config.caption
    assert config.caption.path == "/t5"


def test_setting_that_the_text_tokenizer_of_the_source_lacks_is_refused(home, tmp_path):
    source = write_encoded(home, tmp_path / "encoded")
    config = composed("tokenizer.dropout=0.1")
    with pytest.raises(UserError, match=r"tokenizer\.dropout= has no effect"):
        finetuning.adopt(config, source, ["tokenizer.dropout"])


def test_changeable_settings_of_the_command_line_are_kept(home):
    settings = ["tokenizer.dropout=0.2", "model.network.checkpointing=true"]
    config = composed(*settings)
    finetuning.adopt(config, home.folder / "model", map(runs.override_key, settings))
    assert config.tokenizer == {**untrained.TOKENIZER, "dropout": 0.2}
    network = {**untrained.NETWORKS["prior"], "checkpointing": True}
    assert OmegaConf.to_container(config.model.network) == network


def write_converted(home, folder):
    """Writes the exported model as if it had been converted from `some_family`."""
    shutil.copytree(home.folder / "model", folder)
    for part in (folder, folder / runs.DVAE):
        config = OmegaConf.load(part / runs.MODEL_CONFIG)
        config.update(steps=0, choices={"model": "some_family", "family": "some_family"})
        (part / runs.MODEL_CONFIG).write_text(json.dumps(OmegaConf.to_container(config)))
    return folder


def card(source, out):
    export(source, out, name="mine", captions=["a red circle"], n=1)
    return (out / "README.md").read_text()


def test_the_card_of_a_converted_model_names_its_family_and_what_was_trained(home, tmp_path):
    converted = write_converted(home, tmp_path / "converted")
    text = card(converted, tmp_path / "exported")
    for name in ("prior", "image tokenizer"):
        assert (
            f"The {name} was converted from a checkpoint of the family `some_family` and was not "
            "trained further." in text
        )
    assert "rained with Tilewright" not in text
    assert "DALL-E" not in text
    assert "discrete-vae" not in text


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ([], "fine-tuned with Tilewright for 2 updates"),
        (
            ["lora=default"],
            "low-rank adapters of its layers were trained with Tilewright for 2 updates",
        ),
    ],
)
def test_the_card_of_a_fine_tuned_conversion_tells_which_weights_changed(
    home, tmp_path, settings, change
):
    source = write_converted(home, tmp_path / "converted")
    short = ["trainer.max_steps=2", "trainer.val_check_interval=2"]
    name = f"converted{len(settings)}"
    tuned = finetune(home, name, *short, *settings, source=source)
    text = card(tuned, tmp_path / "exported")
    prior, dvae = (
        f"The {part} was converted from a checkpoint of" for part in ("prior", "image tokenizer")
    )
    assert f"{prior} the family `some_family` and {change}." in text
    assert f"{dvae} the family `some_family` and was not trained further." in text
