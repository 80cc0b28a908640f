"""Encodes a data set to image tokens: `python src/encode.py data=… dvae=… processes=N`."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from tilewright import runs
from tilewright.cli import app
from tilewright.errors import UserError
from tilewright.hardware import resolve_device


@app.command("encode")
def main(config: DictConfig) -> None:
    if config.processes < 1:
        raise UserError(f"processes={config.processes} has to be 1 or more")
    with open_dict(config):
        data = app.choices()["data"]
        config.dvae = str(runs.find(Path(config.paths.logs), "dvae", config.dvae, data=data))
        app.check(config)
    config.device = resolve_device(config.device)

    from tilewright.data.encoding import encode

    settings: Any = OmegaConf.to_container(config, resolve=True)
    for split, codes in encode(settings):
        wrong = f", {codes.wrong().total()} of them unreadable" if codes.wrong() else ""
        print(f"Image tokens of {split} ({len(codes)} pictures{wrong}) are in {codes.folder}")
