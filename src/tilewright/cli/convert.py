"""Converts a checkpoint of another project: `python src/convert.py family=NAME … out=FOLDER`."""

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from tilewright import files, runs
from tilewright.cli import app, settings
from tilewright.configs import instantiate
from tilewright.conversion import Conversion
from tilewright.errors import UserError

NEXT = {"dvae": "train a prior on it with dvae={}", "prior": "generate images with run={}"}


@app.command("convert")
def main(config: DictConfig) -> None:
    """Converts a checkpoint to a model."""
    if OmegaConf.is_missing(config, "family"):
        families = ", ".join(f"family={name}" for name in settings.options("family"))
        raise UserError(f"family= is missing: choose one of {families}")
    settings.check_complete(config)
    out = Path(config.out)
    settings.check_absent("out", out)
    conversion: Conversion = instantiate(config.family).convert(trust=config.trust)
    with files.atomic_folder(out, exclusive=True) as temporary:
        runs.save_conversion(temporary, conversion, settings.choices()["family"])
    print(f"The model is in {out}: {NEXT[conversion.stage].format(out)}")
