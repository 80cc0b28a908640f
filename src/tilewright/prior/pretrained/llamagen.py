"""LlamaGen's text-to-image transformer (Sun et al. 2024), which reads features of a T5 encoder."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilewright import files
from tilewright.checks import check_whole
from tilewright.conversion import Conversion, Family
from tilewright.errors import UserError
from tilewright.prior.attention import SelfAttention
from tilewright.prior.blocks import SwiGLU
from tilewright.prior.decoder import Decoder
from tilewright.prior.norms import RMSNorm
from tilewright.prior.rotary import Rotary, grid_angles
from tilewright.prior.stream import CaptionStream
from tilewright.training.precision import Float32Linear
from tilewright.weight_files import Tensors, read_tensors

HEAD_WIDTH = 64  # of all sizes up to 1.4 billion parameters
MLP_MULTIPLE = 256


class LlamaGenTransformer(Decoder):
    """Network of LlamaGen's text-to-image models.

    Captions are padded on the left, and no position attends to the padding. Dropout, which LlamaGen
    trains with (0.1 of tokens, attention outputs and MLP outputs), is left out.

    Args:
        stream: token layout.
        dim: width of the states.
        depth: number of blocks.
        heads: number of attention heads. dim is a multiple of it.
        checkpointing: keep only each block's input for the backward pass.

    Raises:
        UserError: a number is not possible.
        ValueError: dim is not a multiple of 4 * heads.
    """

    def __init__(
        self,
        stream: CaptionStream,
        *,
        dim: int = 1280,
        depth: int = 36,
        heads: int = 20,
        checkpointing: bool = False,
    ):
        super().__init__()
        for name, number in {"dim": dim, "depth": depth, "heads": heads}.items():
            check_whole(f"model.network.{name}", number)
        self.stream: CaptionStream = stream
        self.checkpointing = checkpointing
        self.no_caption = nn.Embedding(stream.text_length, stream.features)
        self.text_in = nn.Linear(stream.features, dim, bias=False)
        self.text_out = nn.Linear(dim, dim, bias=False)
        self.image_embedding = nn.Embedding(stream.image_vocab, dim)
        rotary = image_rotary(stream, dim // heads)
        norm = partial(RMSNorm, dim, eps=1e-5)
        (block_type,) = self.block_types
        self.blocks = nn.ModuleList(  # type: ignore[assignment]
            block_type(
                SelfAttention(dim, heads, "full", stream, rotary, bias=False),
                SwiGLU(dim, mlp_width(dim), bias=False),
                norm,
            )
            for _ in range(depth)
        )
        self.norm = norm()
        self.text_head = None
        self.image_head = Float32Linear(dim, stream.image_vocab, bias=False)
        self.initialize(self.modules())

    def embed_text(self, text: Tensor) -> Tensor:
        features, _, is_empty = self.stream.split(text)
        learned = self.no_caption.weight
        features = torch.where(is_empty[:, None, None], learned, features.to(learned.dtype))
        hidden = F.gelu(self.text_in(features), approximate="tanh")
        return self.text_out(hidden).to(learned.dtype)  # low-precision layers may return bf16

    def visible_text(self, text: Tensor) -> Tensor:
        _, is_token, _ = self.stream.split(text)
        return is_token


def mlp_width(dim: int) -> int:
    """Returns the width of the feed-forward network: 8/3 of dim, rounded up to 256."""
    return -(int(8 * dim / 3) // -MLP_MULTIPLE) * MLP_MULTIPLE


def image_rotary(stream: CaptionStream, width: int) -> Rotary:
    """Returns LlamaGen's rotation by row and column of an image token.

    LlamaGen's table is zero for the caption. The caption's queries and keys therefore vanish, and
    all its tokens have a score of 0.

    Args:
        width: D, channels of a head, a multiple of 4.
    """
    side = stream.grid
    image = torch.arange(stream.image_length - 1, device="cpu")
    frequencies = 10000.0 ** -(torch.arange(width // 4, device="cpu") / (width // 4))
    angles = grid_angles(image // side, image % side, width, frequencies)
    text = torch.zeros(stream.text_length, width // 2, device="cpu")
    rotary = Rotary(torch.cat([text, angles]))
    rotary.cos[: stream.text_length] = 0.0
    return rotary


@dataclass(frozen=True)
class LlamaGen:
    """Family of LlamaGen's text-to-image models.

    Args:
        checkpoint: file of the transformer, such as `t2i_XL_stage1_256.pt`.
        dvae: family of the image tokenizer, for the image size of the checkpoint.
        text_encoder: folder or Hub name of the T5 encoder that the checkpoint was trained with.
        heads: number of attention heads. None is one for each 64 channels, as in all sizes up to
            1.4 billion parameters.
    """

    checkpoint: str
    dvae: Family
    text_encoder: str = "google/flan-t5-xl"
    heads: int | None = None

    def convert(self, trust: bool) -> Conversion:
        """Converts the transformer and its image tokenizer.

        Raises:
            UserError: a file is missing, broken, or has another layout.
        """
        text_encoder = resolve_encoder(self.text_encoder)
        dvae = self.dvae.convert(trust)
        source = Tensors(read_tensors(self.checkpoint, trust), self.checkpoint)
        image_vocab, dim = source.shape("tok_embeddings.weight")
        text_length, features = source.shape("cls_embedding.uncond_embedding")
        heads = dim // HEAD_WIDTH if self.heads is None else self.heads
        check_whole("family.heads", heads)
        if dim % (4 * heads):
            raise UserError(
                f"family.heads={heads} does not divide the {dim} channels of {self.checkpoint} in "
                "multiples of 4: set the number of its heads"
            )
        depth = source.count("layers.{}.attention.wqkv.weight".format)
        stream = {
            "_target_": "tilewright.prior.CaptionStream",
            "text_length": text_length,
            "features": features,
            "grid": dvae.network["grid"],
            "image_vocab": image_vocab,
        }
        network = {
            "_target_": "tilewright.prior.pretrained.LlamaGenTransformer",
            "stream": stream,
            "dim": dim,
            "depth": depth,
            "heads": heads,
            "checkpointing": False,
        }
        tokenizer = {
            "_target_": "tilewright.data.CaptionEncoder",
            "path": text_encoder,
            "length": text_length,
            "padding_side": "left",
            "cleaning": "llamagen",
            "width": features,
        }
        return Conversion(
            "prior",
            network,
            convert_weights(source, depth, heads),
            tokenizer=tokenizer,
            dvae=dvae,
            sampling={"guidance": 7.5, "top_k": 1000},
            caption_dropout=0.1,
        )


def resolve_encoder(name: str) -> str:
    """Returns the absolute path of a text encoder's folder, or a name on the Hub as it is.

    Raises:
        UserError: the folder does not exist.
    """
    path = Path(name).expanduser()
    if not path.is_dir() and (path.is_absolute() or name.startswith(".")):
        raise UserError(
            f"family.text_encoder={name} does not exist: give the folder or the Hub name of the "
            "T5 encoder that the checkpoint was trained with"
        )
    return files.absolute_folder(name)


def convert_weights(source: Tensors, depth: int, heads: int) -> dict[str, Tensor]:
    """Returns the state dict of a `LlamaGenTransformer` from a checkpoint.

    Raises:
        UserError: the checkpoint has another layout.
    """
    image_vocab, dim = source.shape("tok_embeddings.weight")
    text_length, features = source.shape("cls_embedding.uncond_embedding")
    hidden = mlp_width(dim)

    def take(key: str, *shape: int) -> Tensor:
        return source.take(key, shape).float()

    weights = {
        "no_caption.weight": take("cls_embedding.uncond_embedding", text_length, features),
        "text_in.weight": take("cls_embedding.cap_proj.fc1.weight", dim, features),
        "text_out.weight": take("cls_embedding.cap_proj.fc2.weight", dim, dim),
        "image_embedding.weight": take("tok_embeddings.weight", image_vocab, dim),
        "norm.weight": take("norm.weight", dim),
        "image_head.weight": take("output.weight", image_vocab, dim),
    }
    for index in range(depth):
        layer, block = f"layers.{index}", f"blocks.{index}"
        qkv = take(f"{layer}.attention.wqkv.weight", 3 * dim, dim)
        gate = take(f"{layer}.feed_forward.w1.weight", hidden, dim)
        up = take(f"{layer}.feed_forward.w3.weight", hidden, dim)
        weights |= {
            f"{block}.norm_attention.weight": take(f"{layer}.attention_norm.weight", dim),
            f"{block}.attention.qkv.weight": pair_halves(qkv, heads),
            f"{block}.attention.out.weight": take(f"{layer}.attention.wo.weight", dim, dim),
            f"{block}.norm_mlp.weight": take(f"{layer}.ffn_norm.weight", dim),
            f"{block}.mlp.gate_and_up.weight": torch.cat([gate, up]),
            f"{block}.mlp.down.weight": take(f"{layer}.feed_forward.w2.weight", dim, hidden),
        }
    source.check_empty(ignored=["freqs_cis"])  # the rotary table, which we compute
    return weights


def pair_halves(qkv: Tensor, heads: int) -> Tensor:
    """Reorders the channels of queries and keys, of which LlamaGen rotates neighbors as a pair.

    Args:
        qkv: weight [3 * dim, dim] of the fused projection.
    """
    q, k, v = qkv.view(3, heads, -1, 2, qkv.shape[1])
    q, k = (weight.transpose(1, 2).reshape_as(v) for weight in (q, k))
    return torch.stack([q, k, v]).view_as(qkv)
