"""Public image tokenizers give the tokens and the images of their own projects' code."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from tilewright import runs
from tilewright.data.images import decode_image, to_tensor
from tilewright.data.transforms import CenterCrop
from tilewright.dvae.pretrained import Chameleon, Diffusers, Janus, LlamaGen, Taming

pytest.importorskip("taming", reason="taming-transformers-rom1504 is the reference")

from parity import vq_references as references

SIZES = [64, 256]
DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
ATTENTION_DOWN, ATTENTION_UP = "AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D"
DIFFUSERS = {
    "block_out_channels": (32, 32, 32, 64),
    "down_block_types": (DOWN, DOWN, DOWN, ATTENTION_DOWN),
    "up_block_types": (ATTENTION_UP, UP, UP, UP),
    "latent_channels": 4,
    "num_vq_embeddings": 50,
}


def images(size):
    count = 2 if size == min(SIZES) else 1
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def load(conversion, folder):
    """Returns the network of a conversion after it has been saved and loaded."""
    runs.save_conversion(folder, conversion, "family")
    return runs.load_network(folder)


@torch.no_grad()
def assert_same(network, modules, encode, decode, size, low=-1):
    """Asserts equal tokens, and equal images of these tokens.

    The reference decodes in fp64, because its rounding in fp32 depends on the layout in memory.

    Args:
        modules: networks of the reference.
        encode, decode: the reference: pixels to tokens, and tokens to pixels.
        low: lowest value of its pixels.
    """
    batch = images(size)
    tokens = network.encode(batch)
    assert len(tokens.unique()) > 10
    assert tokens.shape[1:] == (network.grid, network.grid)
    assert torch.equal(tokens, encode((1 - low) * batch + low))
    for module in modules:
        module.double()
    reference = (decode(tokens).float() - low) / (1 - low)
    inside = (reference > 0) & (reference < 1)
    assert 0.1 < inside.float().mean() < 1  # some values are clamped
    torch.testing.assert_close(network.decode(tokens), reference.clamp(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("is_gumbel", [False, True], ids=["nearest", "gumbel"])
def test_taming(size, is_gumbel, tmp_path):
    reference = references.TamingVQGAN(size, [size // references.FACTOR], is_gumbel)
    references.randomize(reference)
    reference.write(tmp_path)
    family = Taming(str(tmp_path / "last.ckpt"), image_size=size)
    network = load(family.convert(trust=True), tmp_path / "model")
    assert_same(network, [reference], reference.encode, reference.decode, size)


@pytest.mark.parametrize("size", SIZES)
def test_llamagen(size, tmp_path):
    reference = references.randomize(references.LlamaGenVQ(size))
    reference.write(tmp_path / "vq.pt")
    family = LlamaGen(str(tmp_path / "vq.pt"), image_size=size)
    network = load(family.convert(trust=True), tmp_path / "model")
    assert_same(network, [reference], reference.encode, reference.decode, size)


AMUSED = {"mid_block_add_attention": False, "vq_embed_dim": 6, "layers_per_block": 2}
UNIT = {"lookup_from_codebook": True, "norm_num_groups": 16}
MOVQ = {"norm_type": "spatial"}


@pytest.mark.parametrize(
    ("size", "changes"),
    [(64, {}), (256, {}), (64, AMUSED), (64, UNIT), (64, MOVQ), (256, MOVQ)],
    ids=["plain-64", "plain-256", "amused-64", "unit-64", "movq-64", "movq-256"],
)
def test_diffusers(size, changes, tmp_path):
    from diffusers import VQModel

    reference = references.randomize(VQModel(**{**DIFFUSERS, **changes}))
    reference.save_pretrained(tmp_path / "vqvae")
    family = Diffusers(str(tmp_path / "vqvae"), image_size=size)
    network = load(family.convert(trust=False), tmp_path / "model")

    def encode(pixels):
        indices = reference.quantize(reference.encode(pixels).latents)[2][2]
        return indices.view(len(pixels), network.grid, network.grid)

    def decode(tokens):
        reference.register_to_config(lookup_from_codebook=True)
        shape = (*tokens.shape, reference.quantize.vq_embed_dim)
        return reference.decode(tokens, force_not_quantize=True, shape=shape).sample

    assert_same(
        network,
        [reference],
        encode,
        decode,
        size,
        low=0 if "lookup_from_codebook" in changes else -1,
    )


def test_attention_under_the_names_of_older_diffusers(tmp_path):
    from diffusers import VQModel
    from safetensors.torch import load_file, save_file

    references.randomize(VQModel(**DIFFUSERS)).save_pretrained(tmp_path)
    network = load(Diffusers(str(tmp_path), image_size=64).convert(False), tmp_path / "new")
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(file)
    for new, old in names.items():
        weights = {key.replace(new, old): value for key, value in weights.items()}
    save_file(weights, file)
    old = load(Diffusers(str(tmp_path), image_size=64).convert(False), tmp_path / "old")
    state = old.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def tiny_janus(size):
    """Returns a tiny Janus, whose image tokenizer is random."""
    from transformers import JanusConfig, JanusForConditionalGeneration

    common = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vq = {
        "base_channels": 32,
        "channel_multiplier": list(references.MULTIPLIERS),
        "latent_channels": 16,
        "num_embeddings": 50,
        "image_token_embed_dim": 16,
        "projection_dim": 16,
    }
    config = JanusConfig(
        text_config={**common, "intermediate_size": 16, "vocab_size": 8000},
        vision_config={
            **common,
            "image_size": size,
            "patch_size": references.FACTOR,
            "projection_dim": 16,
        },
        vq_config=vq,
    )
    model = JanusForConditionalGeneration(config)
    references.randomize(model.model.vqmodel)
    return model


@pytest.mark.parametrize("size", SIZES)
def test_janus_in_shards_of_the_model_around_it(size, tmp_path):
    model = tiny_janus(size)
    reference = model.model.vqmodel
    model.save_pretrained(tmp_path / "janus", max_shard_size="200KB")
    index = json.loads((tmp_path / "janus" / "model.safetensors.index.json").read_text())
    places = index["weight_map"].items()
    needed = {name for key, name in places if key.startswith("model.vqmodel.")}
    for name in {name for _, name in places} - needed:
        (tmp_path / "janus" / name).unlink()
    assert needed < set(index["weight_map"].values())
    network = load(Janus(str(tmp_path / "janus")).convert(trust=False), tmp_path / "model")
    assert network.image_size == size

    def encode(pixels):
        """Compares directions, as Janus did in training. `JanusVQVAE.encode` omits it."""
        latents = F.normalize(reference.quant_conv(reference.encoder(pixels)), dim=1)
        codes = F.normalize(reference.quantize.embedding.weight, dim=1)
        return torch.einsum("bchw,kc->bkhw", latents, codes).argmax(1)

    assert_same(
        network, [reference], encode, lambda tokens: reference.decode(tokens.flatten(1)), size
    )


@pytest.mark.parametrize("size", SIZES)
def test_chameleon(size, tmp_path):
    from safetensors.torch import save_file
    from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

    config = ChameleonVQVAEConfig(
        base_channels=32,
        channel_multiplier=list(references.MULTIPLIERS),
        latent_channels=16,
        embed_dim=16,
        num_embeddings=50,
        resolution=size,
        attn_resolutions=[size // references.FACTOR],
    )
    reference = references.randomize(ChameleonVQVAE(config))
    decoder = references.randomize(references.TamingVQGAN(size, [size // references.FACTOR]))
    state = {f"model.vqmodel.{key}": value for key, value in reference.state_dict().items()}
    state |= {
        f"model.vqmodel.decoder.{key}": value for key, value in decoder.decoder.state_dict().items()
    }
    save_file(
        {**state, "model.embed_tokens.weight": torch.zeros(3)}, tmp_path / "model.safetensors"
    )
    settings = {"model_type": "chameleon", "vq_config": config.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    network = load(Chameleon(str(tmp_path)).convert(trust=False), tmp_path / "converted")

    def encode(pixels):
        return reference.encode(pixels).image_tokens.view(len(pixels), network.grid, -1)

    def decode(tokens):
        codes = reference.quantize.embedding(tokens).permute(0, 3, 1, 2)
        return decoder.decoder(reference.post_quant_conv(codes))

    assert_same(network, [reference, decoder], encode, decode, size)


def test_pixels_of_a_png_are_those_of_the_references(tmp_path):
    from diffusers.image_processor import VaeImageProcessor
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    pixels = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    opened = Image.open(tmp_path / "image.png")
    ours = to_tensor(CenterCrop(64)(decode_image({"path": str(tmp_path / "image.png")})))[None]
    processor = JanusImageProcessorPil(
        size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    expected = {
        "diffusers": VaeImageProcessor(vae_scale_factor=8).preprocess(opened),
        "janus": torch.as_tensor(np.array(processor(opened)["pixel_values"])),
        "taming": torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None].float(),
    }
    for reference in expected.values():
        torch.testing.assert_close(2 * ours - 1, reference, rtol=0, atol=1e-6)
