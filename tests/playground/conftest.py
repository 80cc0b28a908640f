"""Fixtures: a tiny model for the playground, and a run of it on disk."""

import pytest
import torch
from omegaconf import OmegaConf

from helpers import tiny
from helpers.gray_model import BrightnessRanker
from tilewright import runs
from tilewright.pipeline import TextToImage
from tilewright.playground.session import Playground


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    module, data, _ = tiny.make("prior", tmp_path_factory.mktemp("tiny"))
    network = module.network.eval()
    with torch.no_grad():  # at the initial scale, captions hardly change the samples
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return TextToImage(network, data.image_tokenizer, data.tokenizer)


@pytest.fixture
def playground(model):
    """Playground with a ranker that shows a preview after every row."""
    names = {"run_name": "tiny", "steps": 7, "ranker_name": "brightness"}
    return Playground(model, BrightnessRanker(), **names, preview_fraction=1)


@pytest.fixture(scope="session")
def run(model, tmp_path_factory):
    """Run from which `TextToImage.from_run` loads the same model."""
    run = tmp_path_factory.mktemp("logs") / "prior" / "tiny"
    stream = {"text_length": 12, "text_vocab": 280, "grid": 4, "image_vocab": 8}
    prior = {
        "_target_": "tilewright.prior.Transformer",
        "stream": {"_target_": "tilewright.prior.Stream", **stream},
        "dim": 16,
        "depth": 2,
        "heads": 2,
        "positions": "rotary",
    }
    dvae = {
        "_target_": "tilewright.dvae.DiscreteVAE",
        "image_size": tiny.SIZE,
        "grid": 4,
        "num_tokens": 8,
        "n_hid": 8,
        "n_init": 8,
        "blocks_per_group": 1,
    }
    tokenizer = {
        "_target_": "tilewright.data.BytePairTokenizer",
        "vocab_size": 280,
        "length": 12,
    }
    parts = {
        "prior": (run, {"network": prior}, model.prior, {"tokenizer": tokenizer}),
        "dvae": (run / runs.DVAE, {"network": dvae}, model.image_tokenizer, {}),
    }
    for stage, (folder, settings, network, more) in parts.items():
        config = {"stage": stage, "choices": {"data": "shapes"}, "model": settings, **more}
        runs.save_network(folder, OmegaConf.create(config), network.state_dict(), steps=7)
    model.tokenizer.save(run / runs.TOKENIZER)
    return run
