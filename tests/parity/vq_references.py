"""Reference networks of the image tokenizers that others have trained, tiny and random.

taming's own classes need a Lightning that no longer exists. Its encoder, decoder and quantizers do
not, and are put together here. LlamaGen has no package. Its network is taming's under other names.
"""

import argparse
import re
from collections.abc import Mapping

import torch
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.vqvae.quantize import GumbelQuantize, VectorQuantizer2
from torch import nn
from torch.nn import functional as F

WIDTH, MULTIPLIERS, CHANNELS, DIM, CODES = 32, (1, 1, 1, 2), 16, 16, 50
FACTOR = 2 ** (len(MULTIPLIERS) - 1)


def randomize(module):
    """Gives every tensor of a network random values, so that each of them matters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn_like(parameter)
            if "conv_y" in name or "conv_b" in name:  # scale and shift of MoVQ's normalizations
                parameter.copy_(float(name.endswith("conv_y.bias")) + 0.1 * noise)
            elif parameter.ndim > 1 and "embed" not in name:
                gain = 0.75 if "decoder" in name else 1.0  # keeps rounding errors small
                parameter.copy_(gain * noise / parameter[0].numel() ** 0.5)
            elif "embed" in name:
                parameter.copy_(noise)
            else:  # norms and biases
                parameter.copy_((1.0 if name.endswith("weight") else 0.0) + 0.1 * noise)
    return module.eval().requires_grad_(False)


class TamingVQGAN(nn.Module):
    """VQModel or GumbelVQ of taming-transformers, with its names.

    Args:
        size: side of the images.
        attention: sides of the feature maps with attention.
        is_gumbel: use the Gumbel quantizer.
        sizes: further settings of encoder and decoder.
    """

    def __init__(self, size, attention, is_gumbel=False, codes=CODES, dim=DIM, **sizes):
        super().__init__()
        self.ddconfig = {
            "double_z": False,
            "z_channels": CHANNELS,
            "resolution": size,
            "in_channels": 3,
            "out_ch": 3,
            "ch": WIDTH,
            "ch_mult": list(MULTIPLIERS),
            "num_res_blocks": 2,
            "attn_resolutions": attention,
            "dropout": 0.0,
            **sizes,
        }
        channels = self.ddconfig["z_channels"]
        self.encoder = Encoder(**self.ddconfig)
        self.decoder = Decoder(**self.ddconfig)
        self.quantize = (
            GumbelQuantize(channels, dim, codes, straight_through=True)
            if is_gumbel
            else VectorQuantizer2(codes, dim, beta=0.25, sane_index_shape=True)
        )
        self.quant_conv = nn.Conv2d(channels, dim, 1)
        self.post_quant_conv = nn.Conv2d(dim, channels, 1)

    def latents(self, pixels):
        return self.quant_conv(self.encoder(pixels))

    def encode(self, pixels):
        """Returns the image tokens of pixels in [-1, 1], without Gumbel noise."""
        if isinstance(self.quantize, GumbelQuantize):
            return self.quantize.proj(self.latents(pixels)).argmax(1)
        return self.quantize(self.latents(pixels))[2][2]

    @property
    def table(self):
        """The layer that embeds image tokens."""
        return getattr(self.quantize, "embedding", None) or self.quantize.embed

    def decode(self, tokens):
        """Returns the pixels of image tokens."""
        return self.decoder(self.post_quant_conv(self.table(tokens).permute(0, 3, 1, 2)))

    def write(self, folder):
        """Writes `last.ckpt`, with the extras of a Lightning checkpoint."""
        extras = {"loss.discriminator.main.0.weight": torch.zeros(1)}
        state = {"state_dict": {**self.state_dict(), **extras}, "epoch": 1}
        torch.save({**state, "hyper_parameters": argparse.Namespace()}, folder / "last.ckpt")


class LlamaGenVQ(TamingVQGAN):
    """LlamaGen's VQModel: attention at the lowest resolution, and codes compared by direction."""

    def __init__(self, size, codes=CODES, dim=8, ch_mult=MULTIPLIERS, **sizes):
        lowest = size // 2 ** (len(ch_mult) - 1)
        super().__init__(size, [lowest], codes=codes, dim=dim, ch_mult=list(ch_mult), **sizes)

    def encode(self, pixels):
        latents = F.normalize(self.latents(pixels), dim=1)
        codes = F.normalize(self.quantize.embedding.weight, dim=1)
        distances = (latents[:, None] - codes[None, :, :, None, None]).square().sum(2)
        return distances.argmin(1)

    def decode(self, tokens):
        codes = F.normalize(self.quantize.embedding.weight, dim=1)[tokens].permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(codes))

    def write(self, file):
        """Writes the checkpoint."""
        torch.save({"model": self.public_state_dict(), "steps": 3}, file)

    def public_state_dict(self):
        """Returns the state dict under LlamaGen's names."""
        levels = len(self.ddconfig["ch_mult"])
        state = {llamagen_name(key, levels): value for key, value in self.state_dict().items()}
        return {**state, "quantize.codebook_used": torch.zeros(65536)}


def llamagen_name(key, levels):
    """Returns LlamaGen's name of a tensor of taming."""
    up = re.match(r"decoder\.up\.(\d+)\.(.*)", key)
    if up:
        key = f"decoder.conv_blocks.{levels - 1 - int(up[1])}.{up[2]}"
    key = key.replace("encoder.down.", "encoder.conv_blocks.").replace(".block.", ".res.")
    for index, name in enumerate(("block_1", "attn_1", "block_2")):
        key = key.replace(f"mid.{name}", f"mid.{index}")
    return key


def count(parameters: Mapping[str, torch.Tensor]):
    """Returns the number of parameters of a state dict."""
    return sum(value.numel() for value in parameters.values())
