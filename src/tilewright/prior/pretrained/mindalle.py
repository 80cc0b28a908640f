"""minDALL-E (Kakao Brain 2021), a dense transformer over text tokens and image tokens."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import CharBPETokenizer
from torch import Tensor, nn

from tilewright.checks import check_whole
from tilewright.conversion import Conversion, Family
from tilewright.errors import UserError, first_line
from tilewright.prior.attention import SelfAttention
from tilewright.prior.blocks import GELUNetwork
from tilewright.prior.decoder import Decoder
from tilewright.prior.norms import LayerNorm
from tilewright.prior.stream import PlainStream
from tilewright.training.precision import Float32Linear
from tilewright.weight_files import Tensors, read_tensors

# Values of its configuration that the network has. An absent one has this value.
FIXED = {"mlp_bias": True, "attn_bias": True, "gelu_use_approx": False, "use_head_txt": True}
# Sizes of its configuration, with the values of those that are absent.
SIZES = {"embed_dim": 1536, "n_layers": 42, "n_heads": 24, "ctx_len_img": 256, "ctx_len_txt": 64}
PADDING, UNKNOWN = "[PAD]", "[UNK]"


class MinDALLETransformer(Decoder):
    """Network of minDALL-E: dense attention, and one learned position for each token.

    Args:
        stream: token layout.
        dim: width of the states.
        depth: number of blocks.
        heads: number of attention heads. dim is a multiple of it.
        checkpointing: keep only each block's input for the backward pass.

    Raises:
        UserError: a number is not possible.
        ValueError: dim is not a multiple of heads.
    """

    def __init__(
        self,
        stream: PlainStream,
        *,
        dim: int = 1536,
        depth: int = 42,
        heads: int = 24,
        checkpointing: bool = False,
    ):
        super().__init__()
        for name, number in {"dim": dim, "depth": depth, "heads": heads}.items():
            check_whole(f"model.network.{name}", number)
        self.stream: PlainStream = stream
        self.checkpointing = checkpointing
        self.text_embedding = nn.Embedding(stream.text_embeddings, dim)
        self.image_embedding = nn.Embedding(stream.image_vocab, dim)
        self.text_position = nn.Embedding(stream.text_length, dim)
        self.image_position = nn.Embedding(stream.image_length, dim)
        norm = partial(LayerNorm, dim)
        (block_type,) = self.block_types
        self.blocks = nn.ModuleList(  # type: ignore[assignment]
            block_type(SelfAttention(dim, heads, "full", stream), GELUNetwork(dim), norm)
            for _ in range(depth)
        )
        self.norm = norm()
        self.text_head = Float32Linear(dim, stream.text_classes, bias=False)
        self.image_head = Float32Linear(dim, stream.image_vocab, bias=False)
        self.initialize(self.modules())

    def embed_text(self, text: Tensor) -> Tensor:
        states = self.text_embedding(self.stream.text_inputs(text))
        return states + self.text_position.weight[: states.shape[1]]

    def add_image_positions(self, states: Tensor, first_index: int | Tensor) -> Tensor:
        index = first_index + torch.arange(states.shape[1], device=states.device)
        return states + self.image_position(index)


@dataclass(frozen=True)
class MinDALLE:
    """Family of minDALL-E.

    Args:
        folder: its folder, with `config.yaml`, `stage2_last.ckpt` and `tokenizer/`.
        dvae: family of the image tokenizer.
    """

    folder: str
    dvae: Family

    def convert(self, trust: bool) -> Conversion:
        """Converts the transformer, its text tokenizer and its image tokenizer.

        Raises:
            UserError: a file is missing, broken, or has another layout.
        """
        folder = Path(self.folder).expanduser()
        sizes = read_sizes(folder / "config.yaml")
        tokenizer = read_tokenizer(folder / "tokenizer", sizes["vocab_size_txt"])
        checkpoint = folder / "stage2_last.ckpt"
        source = Tensors(read_tensors(checkpoint, trust), checkpoint)
        stream = {
            "_target_": "tilewright.prior.PlainStream",
            "text_length": sizes["ctx_len_txt"],
            "text_vocab": sizes["vocab_size_txt"],
            "grid": sizes["grid"],
            "image_vocab": sizes["vocab_size_img"],
            "padding_token": tokenizer.token_to_id(PADDING),
        }
        network = {
            "_target_": "tilewright.prior.pretrained.MinDALLETransformer",
            "stream": stream,
            "dim": sizes["embed_dim"],
            "depth": sizes["n_layers"],
            "heads": sizes["n_heads"],
            "checkpointing": False,
        }
        return Conversion(
            "prior",
            network,
            convert_weights(source, sizes),
            tokenizer={
                "_target_": "tilewright.data.PretrainedTokenizer",
                "path": None,
                "length": sizes["ctx_len_txt"],
                "vocab_size": sizes["vocab_size_txt"],
            },
            tokenizer_json=tokenizer.to_str(),
            dvae=self.dvae.convert(trust),
            sampling={"top_k": 256},
            caption_dropout=0.0,
        )


def read_sizes(path: Path) -> dict[str, int]:
    """Reads the sizes of the transformer from `config.yaml`.

    Raises:
        UserError: the file cannot be read, or describes another network.
    """
    try:
        stage = yaml.safe_load(path.read_text(encoding="utf-8"))["stage2"]
        values = stage.get("hparams") or {}
        sizes = {name: values.get(name, default) for name, default in SIZES.items()}
        sizes |= {name: stage.get(name, 16384) for name in ("vocab_size_txt", "vocab_size_img")}
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): give the folder of minDALL-E"
        ) from error
    except Exception as error:  # YAML and other structures raise many classes
        raise UserError(
            f"{path} is not a configuration of minDALL-E ({first_line(error)}): give the "
            "config.yaml of its folder"
        ) from error
    for name, value in FIXED.items():
        if values.get(name, value) != value:
            raise UserError(
                f"{path} has stage2.hparams.{name}={values[name]}, and only {value} can be "
                "converted: give the model of 1.3 billion parameters"
            )
    for name, size in sizes.items():
        check_whole(f"{path}: {name}", size)
    grid = round(sizes["ctx_len_img"] ** 0.5)
    if grid**2 != sizes["ctx_len_img"]:
        raise UserError(
            f"{path} has ctx_len_img={sizes['ctx_len_img']}, which is not a square grid: give the "
            "config.yaml of minDALL-E"
        )
    return {**sizes, "grid": grid}


def read_tokenizer(folder: Path, vocab_size: int) -> Any:
    """Reads minDALL-E's tokenizer, a BPE over the characters of lowercased captions.

    Raises:
        UserError: a file cannot be read, or the tokens do not fit the network.
    """
    paths = [folder / f"bpe-16k-{name}" for name in ("vocab.json", "merges.txt")]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} does not exist: give the folder of minDALL-E")
    try:
        tokenizer = CharBPETokenizer.from_file(*map(str, paths), lowercase=True, unk_token=UNKNOWN)
    except Exception as error:  # the library raises bare Exceptions
        raise UserError(
            f"{paths[0]} and {paths[1].name} are not a tokenizer ({first_line(error)}): give those "
            "of minDALL-E"
        ) from error
    tokenizer.add_special_tokens([PADDING])
    tokens = 1 + max(tokenizer.get_vocab().values())
    if tokens > vocab_size:
        raise UserError(
            f"{paths[0]} has {tokens} tokens with {PADDING}, more than vocab_size_txt={vocab_size} "
            "of the network: give the files of one model"
        )
    return tokenizer


def convert_weights(source: Tensors, sizes: dict[str, int]) -> dict[str, Tensor]:
    """Returns the state dict of a `MinDALLETransformer` from a checkpoint.

    Args:
        sizes: those of `read_sizes`.

    Raises:
        UserError: the checkpoint has another layout.
    """
    dim, texts, images = (sizes[n] for n in ("embed_dim", "vocab_size_txt", "vocab_size_img"))

    def take(key: str, *shape: int) -> Tensor:
        return source.take(key, shape).float()

    def take_layer(ours: str, theirs: str, *shape: int) -> dict[str, Tensor]:
        """Returns weight and bias of a layer with a weight of a shape."""
        return {
            f"{ours}.weight": take(f"{theirs}.weight", *shape),
            f"{ours}.bias": take(f"{theirs}.bias", shape[0]),
        }

    weights = {
        "text_embedding.weight": take("tok_emb_txt.weight", texts, dim),
        "image_embedding.weight": take("tok_emb_img.weight", images, dim),
        "text_position.weight": take("pos_emb_txt.weight", sizes["ctx_len_txt"], dim),
        "image_position.weight": take("pos_emb_img.weight", sizes["ctx_len_img"], dim),
        "text_head.weight": take("head_txt.weight", texts, dim),
        "image_head.weight": take("head_img.weight", images, dim),
        **take_layer("norm", "ln_f", dim),
    }
    for index in range(sizes["n_layers"]):
        block = f"blocks.{index}"
        names = ("query", "key", "value")
        parts = [take_layer(name, f"{block}.attn.{name}", dim, dim) for name in names]
        weights |= {
            **take_layer(f"{block}.norm_attention", f"{block}.ln1", dim),
            **{
                f"{block}.attention.qkv.{kind}": torch.cat(
                    [part[f"{name}.{kind}"] for name, part in zip(names, parts, strict=True)]
                )
                for kind in ("weight", "bias")
            },
            **take_layer(f"{block}.attention.out", f"{block}.attn.proj", dim, dim),
            **take_layer(f"{block}.norm_mlp", f"{block}.ln2", dim),
            **take_layer(f"{block}.mlp.up", f"{block}.mlp.0", 4 * dim, dim),
            **take_layer(f"{block}.mlp.down", f"{block}.mlp.2", dim, 4 * dim),
        }
    source.check_empty()
    return weights
