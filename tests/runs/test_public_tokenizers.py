"""Folders in which transformers and diffusers saved an image tokenizer, used as models."""

import fnmatch
import json
import shutil
from pathlib import Path

import pytest
import torch

from tilewright import runs
from tilewright.errors import UserError

diffusers = pytest.importorskip("diffusers")

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


@pytest.fixture
def folder(tmp_path):
    """Folder of a tiny `VQModel`."""
    torch.manual_seed(0)
    network = diffusers.VQModel(
        block_out_channels=(32, 32),
        down_block_types=(DOWN, DOWN),
        up_block_types=(UP, UP),
        latent_channels=4,
        num_vq_embeddings=10,
    )
    network.save_pretrained(tmp_path / "vqvae")
    return tmp_path / "vqvae"


def change(folder, **settings):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def refusal(function, *arguments):
    """Returns the error message, which is one line."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_public_folder_is_a_model(folder, tmp_path):
    run = runs.find(tmp_path, "dvae", str(folder))
    assert run == folder.resolve()
    assert runs.load_config(run).model.network.num_tokens == 10
    assert runs.image_size(run) == 256
    network = runs.load_network(run)
    runs.copy_dvae(tmp_path / "prior", run)
    copy = runs.load_network(tmp_path / "prior" / "dvae")
    image = torch.rand(1, 3, 256, 256)
    assert torch.equal(network.encode(image), copy.encode(image))


def test_the_folder_of_a_pipeline_names_the_image_tokenizer_in_it(folder, tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    line = refusal(runs.find, tmp_path / "logs", "dvae", str(tmp_path))
    assert line.endswith(f"give a folder in it, such as {folder}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"act_fn": "relu"}, "act_fn=relu, which is not supported: use a network with act_fn=silu"),
        ({"in_channels": 1}, "in_channels=1, which is not supported"),
        ({"down_block_types": [DOWN, "SkipDownBlock2D"]}, "down_block_types with SkipDownBlock2D"),
        ({"up_block_types": ["AttnUpDecoderBlock2D", UP]}, "whose decoder mirrors its encoder"),
        ({"norm_type": "layer"}, "norm_type=layer with norm_num_groups=32"),
        ({"layers_per_block": 0}, "layers_per_block=0, which is not possible"),
        ({"layers_per_block": 10**9}, "do not fit the network"),
        ({"num_vq_embeddings": 10**12}, "do not fit the network"),
        ({"num_vq_embeddings": 11}, "embedding.weight of shape [10, 4] instead of [11, 4]"),
        ({"block_out_channels": "32"}, "block_out_channels=32, which is not possible"),
        ({"block_out_channels": [32, 48]}, "groups=32 does not divide a width of 48"),
        ({"latent_channels": None}, "latent_channels=null, which is not possible"),
    ],
)  # fmt: skip
def test_an_unsupported_setting_is_named(folder, settings, message):
    change(folder, **settings)
    assert message in refusal(runs.load_network, folder)


def test_broken_folders_are_one_line_errors(folder):
    weights = folder / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-10])
    assert "is not a complete safetensors file" in refusal(runs.load_network, folder)
    weights.unlink()
    assert "has no model.safetensors or" in refusal(runs.load_network, folder)
    weights.symlink_to("/etc/hostname")
    assert "is a symbolic link" in refusal(runs.load_network, folder)
    weights.unlink()
    change(folder, _class_name="AutoencoderKL")
    assert "is not a run's configuration" in refusal(runs.load_network, folder)


def test_a_chameleon_without_a_decoder_is_refused(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "chameleon", "vq_config": {}}))
    save_file({"model.vqmodel.encoder.x": torch.ones(1)}, tmp_path / "model.safetensors")
    assert "has no decoder of images" in refusal(runs.load_network, tmp_path)


@pytest.mark.parametrize("name", ["someone/model", "someone/model/vqvae"])
def test_a_tokenizer_of_the_hub_is_downloaded(folder, tmp_path, monkeypatch, name):
    subfolder = "/".join(name.split("/")[2:])
    stored, cache = tmp_path / "hub" / subfolder, tmp_path / "cache"
    shutil.copytree(folder, stored)
    (stored / "other.safetensors").write_bytes(b"")
    (stored / "pickle.bin").write_bytes(b"")

    def snapshot_download(repository, revision, allow_patterns):
        assert repository == "someone/model"
        for path in (tmp_path / "hub").rglob("*.*"):
            relative = path.relative_to(tmp_path / "hub")
            if any(fnmatch.fnmatch(str(relative), pattern) for pattern in allow_patterns):
                (cache / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, cache / relative)
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    run = runs.find(tmp_path, "dvae", name)
    assert runs.load_network(run).num_tokens == 10
    names = {path.name for path in run.iterdir()}
    assert names == {"config.json", "diffusion_pytorch_model.safetensors"}


def test_a_wrong_local_path_does_not_ask_the_hub(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    for path in ("vqvae/nothing", "nothing", "/nothing/at_all", "../no/where"):
        assert f"there is no run {Path(path)}" in refusal(runs.find, tmp_path, "dvae", path)


def test_the_weights_of_a_whole_pipeline_are_not_downloaded(tmp_path, monkeypatch):
    (tmp_path / "vqvae").mkdir()
    (tmp_path / "vqvae" / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    asked = []

    def snapshot_download(repository, revision, allow_patterns):
        asked.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    line = refusal(runs.find, tmp_path, "dvae", "someone/pipeline")
    assert f"give a folder in it, such as {tmp_path / 'vqvae'}" in line
    assert asked == ["*.json"]
