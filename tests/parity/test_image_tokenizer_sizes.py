"""Public image tokenizers at full size: every public tensor has its place, without weights."""

import json

import pytest
import torch

from tilewright.dvae.pretrained import (
    Diffusers,
    Janus,
    LlamaGen,
    Taming,
    key_maps,
    llamagen,
    taming,
)

pytest.importorskip("taming", reason="taming-transformers-rom1504 is the reference")

from parity import vq_references as references

F16 = {"ch": 128, "ch_mult": [1, 1, 2, 2, 4], "z_channels": 256}
F8 = {"ch": 128, "ch_mult": [1, 1, 2, 4], "z_channels": 256}


def millions(state, settings, rename):
    """Returns the number of parameters. A tensor without a place is an error."""
    conversion = key_maps.convert_vqgan(state, "file", settings, rename)
    return references.count(conversion.weights) / 1e6


@pytest.fixture
def on_meta(monkeypatch):
    """Lets state dicts on the meta device stand for files of weights."""
    for module in (taming, llamagen):
        monkeypatch.setattr(module, "read_tensors", lambda state, trust: state)


@pytest.mark.parametrize(
    ("sizes", "codes", "is_gumbel", "expected"),
    [(F16, 1024, False, 72.1), (F16, 16384, False, 76.1), (F8, 8192, True, 69.0)],
    ids=["f16-1024", "f16-16384", "f8-gumbel"],
)
def test_taming(sizes, codes, is_gumbel, expected, on_meta):
    side = 256 // 2 ** (len(sizes["ch_mult"]) - 1)
    with torch.device("meta"):
        reference = references.TamingVQGAN(
            256, [side], is_gumbel=is_gumbel, codes=codes, dim=256, **sizes
        )
    conversion = Taming(reference.state_dict()).convert(trust=True)
    assert conversion.network["grid"] == side
    assert references.count(conversion.weights) / 1e6 == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("multipliers", "expected"),
    [((1, 1, 2, 2, 4), 71.9), ((1, 2, 2, 4), 70.1)],
    ids=["VQ-16", "VQ-8"],
)
def test_llamagen(multipliers, expected, on_meta):
    with torch.device("meta"):
        reference = references.LlamaGenVQ(
            256, codes=16384, ch=128, ch_mult=multipliers, z_channels=256
        )
    conversion = LlamaGen(reference.public_state_dict()).convert(trust=True)
    assert conversion.network["grid"] == 256 // 2 ** (len(multipliers) - 1)
    assert references.count(conversion.weights) / 1e6 == pytest.approx(expected, abs=0.05)


def test_janus(tmp_path):
    from transformers import JanusVQVAE, JanusVQVAEConfig

    config = JanusVQVAEConfig(num_patches=24)
    with torch.device("meta"):
        reference = JanusVQVAE(config)
    write_config(tmp_path, {"model_type": "janus", "vq_config": config.to_dict()})
    settings = Janus(str(tmp_path)).settings()
    assert (settings["grid"], settings["image_size"]) == (24, 384)
    state = reference.state_dict()
    assert millions(state, settings, key_maps.janus_key) == pytest.approx(71.9, abs=0.05)


AMUSED = {
    "block_out_channels": [128, 256, 256, 512, 768],
    "down_block_types": ["DownEncoderBlock2D"] * 5,
    "up_block_types": ["UpDecoderBlock2D"] * 5,
    "latent_channels": 64,
    "layers_per_block": 2,
    "lookup_from_codebook": True,
    "mid_block_add_attention": False,
    "num_vq_embeddings": 8192,
}
MOVQ = {
    "block_out_channels": [128, 256, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_type": "spatial",
    "num_vq_embeddings": 16384,
    "vq_embed_dim": 4,
}


@pytest.mark.parametrize(("sizes", "grid"), [(AMUSED, 16), (MOVQ, 32)], ids=["amused", "movq"])
def test_diffusers(sizes, grid, tmp_path):
    from diffusers import VQModel

    with torch.device("meta"):
        reference = VQModel(**sizes)
    write_config(tmp_path, {"_class_name": "VQModel", **sizes})
    family = Diffusers(str(tmp_path))
    state = family.prepare(reference.state_dict())
    assert family.settings()["grid"] == grid
    assert millions(state, family.settings(), family.public_key) == references.count(state) / 1e6


def write_config(folder, content):
    (folder / "config.json").write_text(json.dumps(content))
