"""Settings of the trainings that benchmarks time."""

import sys
from pathlib import Path

from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import processes

import training
from tilewright.runs.folders import FORMAT


def test_a_prior_is_timed_on_the_newest_dvae_of_shapes(tmp_path):
    for name, data, grid in (("first", "shapes", 4), ("second", "emoji", 16)):
        run = tmp_path / "logs" / "dvae" / name
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints" / "last.ckpt").touch()
        network = {"grid": grid, "num_tokens": 64}
        config = {"format": FORMAT, "stage": "dvae", "choices": {"data": data}}
        config["model"] = {"network": network}
        OmegaConf.save(OmegaConf.create(config), run / "config.yaml")
    overrides = [f"paths.logs={tmp_path / 'logs'}"]
    words = training.dvae_settings(None, overrides)
    assert words[1:] == ["image_tokens.grid=4", "image_tokens.vocab=64"]
    config = processes.configuration(OmegaConf.create(processes.DEFAULTS), overrides)
    assert config.dvae == str(tmp_path / "logs" / "dvae" / "first")
    assert config.model.network.stream.grid == 4
