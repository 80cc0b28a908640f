"""Recipes in conf/experiment: they compose, and have the values that they promise."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from helpers import untrained
from helpers.command import run
from tilewright.callbacks.throughput import Throughput
from tilewright.cli import app
from tilewright.distributed import launch
from tilewright.runs import listing

TOKENS = ["image_tokens.grid=16", "image_tokens.vocab=1024", "dvae=x"]
RECIPES = sorted(file.stem for file in (app.CONF / "experiment").glob("*.yaml"))


def composed(*overrides):
    """Composes a training on a folder of images."""
    with initialize_config_dir(str(app.CONF), version_base="1.3"):
        return compose("train", [*overrides, "data=folder", "data.source.path=x", "run=x"])


@pytest.fixture
def paper():
    return composed("experiment=dvae_paper")


@pytest.fixture
def prior():
    tokens = ["image_tokens.grid=32", "image_tokens.vocab=8192", "dvae=x"]
    return composed("experiment=prior_paper", *tokens)


def test_dvae_paper_has_the_papers_schedules(paper):
    """Appendix A.2."""
    temperature, beta, rate = (
        instantiate(paper.model[name]) for name in ("temperature", "beta", "learning_rate")
    )
    assert [temperature(0), temperature(150_000), temperature(3_000_000)] == [1, 1 / 16, 1 / 16]
    assert [beta(0), beta(5_000), beta(3_000_000)] == pytest.approx([0, 6.6, 6.6])
    assert [rate(0), rate(1_200_000)] == pytest.approx([1e-4, 1.25e-6])
    assert temperature(75_000) == pytest.approx((1 + 1 / 16) / 2)


def test_dvae_paper_has_the_papers_sizes_and_length(paper):
    network = paper.model.network
    assert (network.image_size, network.grid, network.num_tokens) == (256, 32, 8192)
    assert (network.n_hid, network.n_init, network.blocks_per_group) == (256, 128, 2)
    assert (network.encoder_kernel, network.padding_mode) == (3, "zeros")
    assert paper.likelihood._target_.endswith("LogitLaplace")
    assert paper.likelihood.min_log_scale is None
    assert paper.model.weight_decay == 1e-4
    assert paper.data.batch_size * paper.trainer.accumulate_grad_batches == 512
    assert paper.trainer.max_steps == 3_000_000
    assert (paper.callbacks.ema.decay, paper.callbacks.ema.every_n_updates) == (0.999, 1)


def test_dvae_paper_augments_as_the_paper_does(paper):
    augment = instantiate(paper.data.train_transform)
    assert (augment.size, augment.flip) == (256, True)


def test_prior_paper_has_the_papers_optimization(prior):
    """Section 2.2, appendix B."""
    rate = instantiate(prior.model.learning_rate)
    assert [rate(4_999), rate(400_000)] == pytest.approx([4.5e-4, 4.5e-4])
    assert rate(2_499) == pytest.approx(2.25e-4)
    model = prior.model
    assert (model.betas, model.eps, model.weight_decay) == ([0.9, 0.96], 1e-8, 4.5e-2)
    assert (model.variance_clip, model.caption_dropout) == (5.0, 0.0)
    assert prior.trainer.gradient_clip_val == 4.0
    assert prior.data.batch_size * prior.trainer.accumulate_grad_batches == 1024
    assert prior.trainer.max_steps == 430_000
    assert (prior.callbacks.ema.decay, prior.callbacks.ema.every_n_updates) == (0.99, 25)
    assert instantiate(prior.callbacks.plateau).max_halvings == 5
    assert prior.callbacks.plateau.monitor == "validation/loss"


def test_prior_paper_has_the_papers_stream_and_size(prior):
    network = prior.model.network
    assert (network.dim, network.depth, network.heads, network.pattern) == (3968, 64, 62, "paper")
    stream = instantiate(network.stream)
    assert (stream.text_length, stream.text_vocab) == (256, 16384)
    assert (stream.grid, stream.image_vocab) == (32, 8192)
    assert prior.tokenizer.dropout == 0.1
    assert prior.data.augmented_tokens
    augment = instantiate(prior.data.train_transform)
    assert augment.size == 256
    assert not getattr(augment, "flip", False)


@pytest.mark.parametrize(
    ("size", "millions"),
    [
        ("small", 0.79),
        ("modern", 0.79),
        ("medium", 37.8),
        ("300m", 302),
        ("1b", 1007),
        ("dalle12b", 12_094),
    ],
)
def test_priors_have_the_documented_number_of_parameters(size, millions):
    config = composed(
        "stage=prior", f"model=prior_{size}", "image_tokens.grid=32", "image_tokens.vocab=8192"
    )
    with torch.device("meta"):
        network = instantiate(config.model).network
    blocks = sum(p.numel() for p in network.blocks.parameters() if p.ndim == 2)
    assert blocks / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes_and_builds(recipe):
    config = composed(f"experiment={recipe}", *(f"++{text}" for text in TOKENS))
    if recipe == "dvae_vqgan_gpu":  # whose perceptual loss is on weights to download
        config.loss.perceptual.network = "efficientnet_lite0"
    with torch.device("meta"):
        module = instantiate(config.model)
    rate, steps = module.learning_rate, config.trainer.max_steps
    assert rate(steps // 2) >= rate(steps - 1) > 0
    callbacks = instantiate(config.callbacks)
    assert any(isinstance(callback, Throughput) for callback in callbacks.values())
    left_out = {name for name, callback in callbacks.items() if callback is None}
    last_counts = recipe in {"prior_emoji", "dvae_vqgan_gpu"}
    assert left_out == ({"best", "overfitting"} if last_counts else set())


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name.startswith("dvae_")])
def test_every_dvae_recipe_composes_with_the_papers_loss(recipe):
    config = composed(f"experiment={recipe}", "loss=elbo")
    assert config.loss.perceptual is None
    assert config.loss.adversarial is None


def test_cluster_processes_share_a_batch_evenly():
    config = composed("experiment=prior_cluster", *TOKENS)
    processes = config.trainer.num_nodes * config.trainer.devices
    assert processes == 32
    launch.check_batch_size(config.data.batch_size, processes)


@pytest.mark.parametrize(
    ("recipe", "images"),
    [("prior_gpu", 256), ("prior_256px", 1024), ("prior_cluster", 1024), ("prior_paper", 1024)],
)
def test_images_of_an_update(recipe, images):
    config = composed(f"experiment={recipe}", *TOKENS)
    assert config.data.batch_size * config.trainer.accumulate_grad_batches == images


def test_prior_cluster_has_the_stream_of_prior_256px():
    config, base = (composed(f"experiment=prior_{x}", *TOKENS) for x in ("cluster", "256px"))
    assert config.trainer.strategy._target_.endswith("FullyShardedStrategy")
    assert (config.trainer.num_nodes, config.trainer.devices) == (4, 8)
    assert config.model.network.dim == 2048
    assert config.tokenizer == base.tokenizer
    assert config.model.network.stream == base.model.network.stream
    assert config.model.caption_dropout > 0  # guidance needs it


@pytest.mark.slow
def test_laptop_recipes_train_on_a_folder(home):
    """Both stages run a few updates on a folder of images, with all other settings unchanged."""
    images = untrained.write_images(home.folder / "images")
    settings = ["data=folder", f"data.source.path={images}"]
    settings += ["data.source.validation_fraction=0.3", "run_name=first"]
    settings += [
        "trainer=cpu",
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
        "compile=false",
    ]
    for recipe, stage in (("dvae_laptop", "dvae"), ("prior_laptop", "prior")):
        run(home, "train", f"experiment={recipe}", *settings)
        (record,) = listing.records(home.logs, stage)
        assert record.steps == record.config.trainer.max_steps == 2
        assert record.validation_row() is not None
    tokens = record.config.image_tokens
    assert (tokens.grid, tokens.vocab) == (16, 512)
    assert len(list(home.data.glob("image_tokens/*"))) > 8  # crops, and the validation


def test_dvae_vqgan_gpu_has_the_sizes_of_llamagens_vq16():
    """Their tokenizer has 71.9 million parameters."""
    config = composed("experiment=dvae_vqgan_gpu")
    with torch.device("meta"):
        network = instantiate(config.model.network)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(71.9e6, rel=1e-3)
    assert (network.grid, network.num_tokens, network.codebook.channels) == (16, 16384, 8)
    assert config.data.batch_size * config.trainer.accumulate_grad_batches == 128
    assert config.model.adversarial.start == 20_000


def test_a_short_dvae_vqgan_gpu_trains_with_a_discriminator():
    config = composed("experiment=dvae_vqgan_gpu", "trainer.max_steps=15000")
    assert config.model.adversarial.start == 750
