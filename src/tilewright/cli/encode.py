"""Encodes a dataset to image tokens: `python src/encode.py data=… dvae=… processes=N`."""

from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from tilewright.checks import check_whole
from tilewright.cli import app, settings
from tilewright.configs import escape
from tilewright.hardware import resolve_device


@app.command("encode")
def main(config: DictConfig) -> None:
    """Encodes the splits of a dataset."""
    resolve(config)
    encode(config)


def resolve(config: DictConfig) -> None:
    """Fills in the dVAE and the device, and checks the settings."""
    check_whole("processes", config.processes)
    with open_dict(config):
        config.dvae = escape(str(settings.find_dvae(config)))
    settings.check_complete(config)
    config.device = resolve_device(config.device)


def encode(config: DictConfig) -> None:
    """Encodes each split, and prints the folders of its image tokens and caption features."""
    from tilewright.data.encode_parallel import encode_in_parallel
    from tilewright.data.feature_cache import FeatureCache
    from tilewright.data.skipping import format_counts

    plain: Any = OmegaConf.to_container(config, resolve=True)
    for split, cache, unreadable in encode_in_parallel(plain):
        if isinstance(cache, FeatureCache):
            size = f"{cache.num_bytes() / 2**20:.3g} MiB"
            print(f"Features of {split} ({len(cache)} captions, {size}) are in {cache.folder}")
            continue
        note = f", not encoded: {format_counts(unreadable)}" if unreadable else ""
        print(f"Image tokens of {split} ({len(cache)} images{note}) are in {cache.folder}")
