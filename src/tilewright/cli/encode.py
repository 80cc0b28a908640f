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

    from tilewright.data.encode_parallel import encode_in_parallel

    settings: Any = OmegaConf.to_container(config, resolve=True)
    for split, cache in encode_in_parallel(settings):
        skipped = cache.unreadable().total()
        note = f", {skipped} of them unreadable" if skipped else ""
        print(f"Image tokens of {split} ({len(cache)} images{note}) are in {cache.folder}")
