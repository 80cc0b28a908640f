"""Names of tensors in the checkpoints of VQGAN's relatives, and the conversion of their weights."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tilewright.conversion import Conversion
from tilewright.weight_files import Tensors, limit_parameters

if TYPE_CHECKING:
    from torch import Tensor

# Tensors that only training needs.
IGNORED = ("loss.", "discriminator.", "model_ema.", "colorize", "quantize.codebook_used")

# Replacements in the names of our `VQGAN`, in this order.
_LAYERS = [
    (r"attention(\.\d+)?\.query", r"attention\1.q"),
    (r"attention(\.\d+)?\.key", r"attention\1.k"),
    (r"attention(\.\d+)?\.value", r"attention\1.v"),
    (r"attention(\.\d+)?\.out", r"attention\1.proj_out"),
    ("shortcut", "nin_shortcut"),
    (r"coder\.stem", "coder.conv_in"),
    (r"coder\.norm", "coder.norm_out"),
    (r"coder\.head", "coder.conv_out"),
    (r"^to_latents", "quant_conv"),
    (r"^from_codes", "post_quant_conv"),
    (r"^codebook\.logits", "quantize.proj"),
    (r"^codebook\.vectors", "quantize.embedding.weight"),
]
_TAMING = [
    *_LAYERS,
    (r"middle\.block1", "mid.block_1"),
    (r"middle\.block2", "mid.block_2"),
    (r"middle\.attention", "mid.attn_1"),
    (r"encoder\.levels\.(\d+)\.resize", r"encoder.down.\1.downsample"),
    (r"encoder\.levels\.(\d+)", r"encoder.down.\1"),
    (r"decoder\.levels\.(\d+)\.resize", r"decoder.up.\1.upsample"),
    (r"decoder\.levels\.(\d+)", r"decoder.up.\1"),
    (r"\.blocks\.", ".block."),
    (r"\.attention\.", ".attn."),
]
_LLAMAGEN = [
    *_LAYERS,
    (r"middle\.block1", "mid.0"),
    (r"middle\.attention", "mid.1"),
    (r"middle\.block2", "mid.2"),
    (r"encoder\.levels\.(\d+)\.resize", r"encoder.conv_blocks.\1.downsample"),
    (r"decoder\.levels\.(\d+)\.resize", r"decoder.conv_blocks.\1.upsample"),
    (r"levels\.(\d+)", r"conv_blocks.\1"),
    (r"\.blocks\.", ".res."),
    (r"\.attention\.", ".attn."),
]
_DIFFUSERS = [
    (r"middle\.block1", "mid_block.resnets.0"),
    (r"middle\.block2", "mid_block.resnets.1"),
    (r"middle\.attention", "mid_block.attentions.0"),
    (r"encoder\.levels\.(\d+)\.resize", r"encoder.down_blocks.\1.downsamplers.0"),
    (r"encoder\.levels\.(\d+)", r"encoder.down_blocks.\1"),
    (r"decoder\.levels\.(\d+)\.resize", r"decoder.up_blocks.\1.upsamplers.0"),
    (r"decoder\.levels\.(\d+)", r"decoder.up_blocks.\1"),
    (r"\.blocks\.", ".resnets."),
    (r"\.attention\.", ".attentions."),
    (r"(attentions\.\d+)\.norm\.(norm|scale|shift)\.", r"\1.spatial_norm.\2."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"\.query\.", ".to_q."),
    (r"\.key\.", ".to_k."),
    (r"\.value\.", ".to_v."),
    (r"\.out\.", ".to_out.0."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"(coder)\.norm\.", r"\1.conv_norm_out."),
    (r"coder\.stem", "coder.conv_in"),
    (r"coder\.head", "coder.conv_out"),
    (r"\.scale\.", ".conv_y."),
    (r"\.shift\.", ".conv_b."),
    (r"(norm\d?|conv_norm_out)\.norm\.", r"\1.norm_layer."),
    (r"^to_latents", "quant_conv"),
    (r"^from_codes", "post_quant_conv"),
    (r"^codebook\.vectors", "quantize.embedding.weight"),
]


def taming_key(key: str, levels: int) -> str:
    """Returns the name of a tensor in taming-transformers, minDALL-E and Chameleon.

    Args:
        key: name in the state dict of our `VQGAN`.
        levels: number of levels, because their decoders count from the finest.
    """
    reversed_level = re.sub(
        r"^(decoder\.levels\.)(\d+)", lambda match: f"{match[1]}{levels - 1 - int(match[2])}", key
    )
    return _replace(_TAMING, reversed_level)


def janus_key(key: str) -> str:
    """Returns the name of a tensor in transformers' `JanusVQVAE`."""
    return _replace(_TAMING, key)


def llamagen_key(key: str) -> str:
    """Returns the name of a tensor in LlamaGen's image tokenizers."""
    return _replace(_LLAMAGEN, key)


def diffusers_key(key: str) -> str:
    """Returns the name of a tensor in diffusers' `VQModel`."""
    return _replace(_DIFFUSERS, key)


def _replace(replacements: Sequence[tuple[str, str]], key: str) -> str:
    for pattern, replacement in replacements:
        key = re.sub(pattern, replacement, key)
    return key


def infer_settings(
    weights: Mapping[str, "Tensor"], source: Any, rename: Callable[[str], str], image_size: int
) -> dict[str, Any]:
    """Returns the arguments of our `VQGAN` that public weights determine.

    Args:
        weights: public state dict.
        source: its file, for messages.
        rename: public name of each of our tensors, such as `llamagen_key`.
        image_size: side of the images in pixels.

    Raises:
        UserError: the weights are not of such a network.
    """
    tensors = Tensors(weights, source)

    def shape(key: str, dims: int = 4) -> tuple[int, ...]:
        return tensors.shape(rename(key), dims)

    def count(key: str) -> int:
        return tensors.count(lambda index: rename(key.format(index)))

    num_tokens, code_dim = shape("codebook.vectors", dims=2)
    shape("encoder.levels.0.blocks.0.conv1.weight")  # raises for another network
    levels = range(count("encoder.levels.{}.blocks.0.conv1.weight"))
    attention = "encoder.levels.{}.attention.0.query.weight"
    return {
        "image_size": image_size,
        "grid": image_size // 2 ** (len(levels) - 1),
        "num_tokens": num_tokens,
        "code_dim": code_dim,
        "channels": shape("from_codes.weight")[0],
        "widths": [shape(f"encoder.levels.{i}.blocks.0.conv1.weight")[0] for i in levels],
        "stem_width": shape("encoder.stem.weight")[0],
        "blocks": count("encoder.levels.0.blocks.{}.conv1.weight"),
        "attention": [i for i in levels if rename(attention.format(i)) in tensors],
        "middle_attention": rename("encoder.middle.attention.query.weight") in tensors,
        "codebook": "gumbel" if rename("codebook.logits.weight") in tensors else "nearest",
    }


def convert_vqgan(
    weights: Mapping[str, "Tensor"],
    source: Any,
    settings: dict[str, Any],
    rename: Callable[[str], str],
) -> Conversion:
    """Converts the weights of a relative of VQGAN.

    Args:
        weights: public state dict.
        source: its file, for messages.
        settings: arguments of our `VQGAN`.
        rename: public name of each of our tensors, such as `llamagen_key`.

    Raises:
        UserError: a tensor is missing, has another shape, or is left.
    """
    import torch

    from tilewright.dvae.vqgan import VQGAN

    with torch.device("meta"), limit_parameters(weights, source):
        expected = VQGAN(**settings).state_dict()
    tensors = Tensors(weights, source)
    converted = {key: tensors.take(rename(key), meta.shape) for key, meta in expected.items()}
    tensors.check_empty(IGNORED)
    return Conversion("dvae", {"_target_": "tilewright.dvae.VQGAN", **settings}, converted)
