"""Converts OpenAI's released dVAE: `python src/convert.py encoder=… decoder=… out=… trust=true`."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from tilewright import runs
from tilewright.cli import app, settings
from tilewright.errors import UserError


@app.command("convert")
def main(config: DictConfig) -> None:
    """Converts the released dVAE to a model of stage=dvae."""
    check(config)
    network = convert(config)
    save(config, network)
    print(f"The dVAE is in {config.out}: use it as dvae={config.out}")


def check(config: DictConfig) -> None:
    """Checks that the user trusts the files, and that no folder is overwritten."""
    settings.check_complete(config)
    settings.check_absent("out", Path(config.out))
    if not config.trust:
        raise UserError(
            f"{config.encoder} and {config.decoder} are pickles, which run code when they are "
            "opened: set trust=true if you trust their source"
        )


def convert(config: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the settings of the network and its weights."""
    from tilewright.dvae import released

    encoder = released.load_pickled_module(config.encoder, "Encoder")
    decoder = released.load_pickled_module(config.decoder, "Decoder")
    network = released.convert_modules(encoder, decoder, config.image_size)
    return released.network_arguments(encoder, decoder, config.image_size), network.state_dict()


def save(config: DictConfig, network: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Saves the network as a model of stage=dvae."""
    sizes, weights = network
    model = {"network": {"_target_": "tilewright.dvae.DiscreteVAE", **sizes}}
    saved = {"stage": "dvae", "choices": {"model": "openai_dvae"}, "model": model}
    runs.save_network(Path(config.out), OmegaConf.create(saved), weights)
