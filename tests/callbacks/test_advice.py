"""Keys that messages advise: they exist, and the command line can set them."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

import tilewright
from tilewright.callbacks import health
from tilewright.cli import app
from tilewright.dvae.quantizers.base import GumbelSoftmax

PACKAGE = Path(tilewright.__file__).parent
FILES = [file for name in ("callbacks", "training") for file in (PACKAGE / name).glob("*.py")]
KEY = re.compile(r"\b(?:model|trainer|data|callbacks|logger|tokenizer|sampling)(?:\.[a-z_]+)+")
FILLED_IN = ["run=x", "dvae=x", "image_tokens.grid=8", "image_tokens.vocab=64"]
MODELS = sorted(file.stem for file in (app.CONF / "model").glob("*.yaml"))


def composed(stage, *overrides):
    filled_in = FILLED_IN if stage == "prior" else FILLED_IN[:1]
    with initialize_config_dir(str(app.CONF), version_base="1.3"):
        return compose("train", [f"stage={stage}", *filled_in, *overrides])


def stage_of(model):
    return model.partition("_")[0]


def messages(file):
    """Returns the string literals of a module that are not docstrings."""
    tree = ast.parse(file.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_text and id(node) not in docstrings:
            yield node.value


def test_keys_of_messages_exist():
    configs = [composed(stage) for stage in ("dvae", "prior", "ranker")]
    for recipe in ("shapes_hour", "prior_paper"):  # have more callbacks and settings
        configs.append(composed("prior", f"experiment={recipe}"))
    keys = {key for file in FILES for text in messages(file) for key in KEY.findall(text)}
    assert {"trainer.gradient_clip_val", "data.overfit_batches", "callbacks.best"} <= keys
    for key in keys:
        parent, _, name = key.rpartition(".")
        parents = [OmegaConf.select(config, parent) for config in configs]
        assert any(parent is not None and name in parent for parent in parents), key


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("model", MODELS)
def test_keys_of_health_can_be_set_for_every_model(model, clip):
    config = composed(stage_of(model), f"model={model}")
    module = SimpleNamespace(
        **{
            name: instantiate(config.model[name])
            for name in ("learning_rate", "beta", "temperature")
            if name in config.model
        }
    )
    if "beta" in config.model:
        has_own = "quantizer" in config.model.network
        module.network = SimpleNamespace(quantizer=None if has_own else GumbelSoftmax(8))
    trainer = SimpleNamespace(gradient_clip_val=clip, precision="bf16-mixed")
    advice = health.loss_advice(trainer, module)
    if "beta" in config.model:
        advice += f" or {health._codebook_advice(module)}"
    for key in KEY.findall(advice):
        value = OmegaConf.select(config, key)
        assert value is None or not OmegaConf.is_config(value), key
        if f"{key}=" in advice and value is not None:
            assert isinstance(value, int | float | str)
        changed = composed(stage_of(model), f"model={model}", f"{key}=1")
        assert OmegaConf.select(changed, key) == 1
    assert "model.learning_rate." in advice


def test_a_collapsing_codebook_needs_a_higher_peak_of_beta():
    module = instantiate(composed("dvae", "model=dvae_paper").model, network=None)
    module.network = SimpleNamespace(quantizer=GumbelSoftmax(8))
    assert health._codebook_advice(module).startswith("raise model.beta.end=6.6, or ")
