"""The released dVAE for use here: `python src/convert.py encoder=… decoder=… out=… trust=true`."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from tilewright import runs
from tilewright.cli import app
from tilewright.errors import UserError


@app.command("convert")
def main(config: DictConfig) -> None:
    app.check(config)
    if not config.trust:
        raise UserError(
            f"{config.encoder} and {config.decoder} are pickles, which run code when they are "
            "opened: say trust=true if they come from somebody you trust"
        )

    from tilewright.dvae import released

    encoder = released.load_pickled_module(config.encoder, "Encoder")
    decoder = released.load_pickled_module(config.decoder, "Decoder")
    network = released.convert_modules(encoder, decoder, config.image_size)
    target = {"_target_": "tilewright.dvae.DiscreteVAE"}
    settings = released.network_arguments(encoder, decoder, config.image_size)
    saved = {
        "stage": "dvae",
        "choices": {"model": "openai_dvae"},
        "model": {"network": {**target, **settings}},
    }
    runs.save_network(Path(config.out), OmegaConf.create(saved), network.state_dict())
    print(f"The dVAE is in {config.out}: use it as dvae={config.out}")
