"""A training that begins with the weights of another: what has to stay as it is there."""

from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from tilewright import runs
from tilewright.errors import UserError
from tilewright.runs import safe_build

# What the weights are made for; and of it, what may be different all the same.
KEPT = ("model.network.", "tokenizer.", "image_tokens.", "data.image_size")
FREE = ("tokenizer.dropout", "model.network.checkpointing")


def begin_with(config: DictConfig, source: Path, given: Iterable[str]) -> None:
    """Gives a new run the network, the tokenizer and the dVAE of a trained or exported one.

    Args:
        config: of the new run, with its interpolations.
        source: whose weights it begins with; of the same stage.
        given: keys that the user has set on the command line.

    Raises:
        UserError: one of these would make it another network than the weights are for.
    """
    given = list(given)
    saved = runs.load_config(source)
    size = runs.image_size(source)
    settings = {"model": {"network": saved.model.network}, "data": {"image_size": size}}
    if saved.get("tokenizer"):
        settings["tokenizer"] = saved.tokenizer
    there = OmegaConf.create(settings)
    free = {}
    for key in given:
        if key == "dvae":
            raise UserError(f"init={source} brings the dVAE that it draws with: leave dvae=… out")
        if key in FREE:
            free[key] = OmegaConf.select(config, key)
        elif key.startswith(KEPT):
            wanted = OmegaConf.select(config, key)
            if wanted != OmegaConf.select(there, key):
                raise UserError(
                    f"the weights of init={source} are made for {key}="
                    f"{OmegaConf.select(there, key)}: leave {key}={wanted} out"
                )
    chosen = config.choices.get("model")
    if "model" in given and chosen != saved.choices.get("model"):
        raise UserError(
            f"init={source} is a model={saved.choices.get('model')}: leave model={chosen} out"
        )
    safe_build.check(saved.model.network, f"tilewright.{saved.stage}", f"model.network in {source}")
    with open_dict(config):
        config.init = str(source)
        config.model.network = saved.model.network
        config.data.image_size = size
        if saved.get("tokenizer"):
            safe_build.check(saved.tokenizer, "tilewright.data", f"tokenizer in {source}")
            config.tokenizer = saved.tokenizer
        if saved.stage == "prior":
            config.dvae = str(source / runs.DVAE)
        for key, value in free.items():
            OmegaConf.update(config, key, value)
