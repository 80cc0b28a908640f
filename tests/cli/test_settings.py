"""Settings of a command line: the dVAE that commands choose on their own."""

import os

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from helpers import untrained
from tilewright import runs
from tilewright.cli import app, encode, run_config


def write_dvae(logs, name, source, size, at):
    """Writes a dVAE's run whose checkpoint, an empty file, has a modification time."""
    network = {**untrained.NETWORKS["dvae"], "image_size": size}
    data = {"source": OmegaConf.to_container(source)}
    choices = {"data": "folder"}
    config = {"stage": "dvae", "choices": choices, "data": data, "model": {"network": network}}
    folder = logs / "dvae" / name
    runs.create(folder, OmegaConf.create(config))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.ckpt").touch()
    os.utime(folder / "checkpoints" / "best.ckpt", (at, at))
    return folder


@pytest.mark.parametrize(
    ("command", "arguments", "complete"),
    [
        ("encode", ["device=cpu"], encode.resolve),
        ("train", ["stage=prior", "trainer=cpu", "run_name=a"], run_config.new_run),
    ],
)
def test_newest_dvae_of_the_image_size_is_chosen(tmp_path, command, arguments, complete):
    data = ["data=folder", f"data.source.path={tmp_path}", f"paths.logs={tmp_path / 'logs'}"]
    with initialize_config_dir(str(app.CONF), version_base="1.3"):
        config = compose(command, [*arguments, *data], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        OmegaConf.set_struct(config, False)
        del config["hydra"]
        size = config.data.image_size
        write_dvae(tmp_path / "logs", "older", config.data.source, size, at=100)
        fitting = write_dvae(tmp_path / "logs", "fitting", config.data.source, size, at=200)
        write_dvae(tmp_path / "logs", "larger", config.data.source, 2 * size, at=300)
        complete(config)
    assert config.dvae == str(fitting)
