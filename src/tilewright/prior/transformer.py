"""The prior's own network, with the paper's parts or their modern replacements (section 2.2)."""

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from tilewright.checks import check_option, check_whole
from tilewright.prior.attention import SelfAttention
from tilewright.prior.blocks import MLPS
from tilewright.prior.decoder import Decoder
from tilewright.prior.norms import NORMS
from tilewright.prior.patterns import layer_patterns
from tilewright.prior.rotary import Rotary, stream_angles
from tilewright.prior.stream import CaptionStream, TokenStream
from tilewright.training.precision import Float32Linear


class FeatureEmbedding(nn.Module):
    """Embedding of caption features, with learned vectors for padding and for a missing caption.

    Args:
        stream: layout with features.
        dim: width of the states.
    """

    def __init__(self, stream: CaptionStream, dim: int):
        super().__init__()
        self.stream = stream
        self.projection = nn.Linear(stream.features, dim)
        self.special = nn.Embedding(2, dim)

    def forward(self, text: Tensor) -> Tensor:
        """Embeds text [B, T, D + 1] as states [B, T, dim]."""
        features, is_token, is_empty = self.stream.split(text)
        padding, empty = self.special.weight
        states = self.projection(features.to(padding.dtype))
        states = torch.where(is_token[..., None], states, padding)
        return torch.where(is_empty[:, None, None], empty, states)


class Transformer(Decoder):
    """Decoder with the paper's parts or modern ones, for any stream.

    Args:
        stream: token layout.
        dim: width of the states.
        depth: number of blocks.
        heads: number of attention heads. dim is a multiple of it.
        pattern: "paper" for the paper's order of row, column and convolutional layers, or the name
            of one pattern for all layers ("full" is dense attention).
        norm: "layer" is the paper's LayerNorm, "rms" RMSNorm.
        mlp: "gelu" is the paper's network, "swiglu" a gated one with as many parameters.
        positions: "learned" is the paper's embedding of text position, row and column. "rotary"
            rotates queries and keys instead.
        qk_norm: normalize queries and keys.
        checkpointing: keep only each block's input for the backward pass and recompute the rest.
            This takes far less memory and about a third more time.

    Raises:
        UserError: a number or an option is not possible.
        ValueError: the pattern is unknown, or dim is not a multiple of heads.
    """

    rows: Tensor
    columns: Tensor

    def __init__(
        self,
        stream: TokenStream | CaptionStream,
        *,
        dim: int = 3968,
        depth: int = 64,
        heads: int = 62,
        pattern: str = "paper",
        norm: Literal["layer", "rms"] = "layer",
        mlp: Literal["gelu", "swiglu"] = "gelu",
        positions: Literal["learned", "rotary"] = "learned",
        qk_norm: bool = False,
        checkpointing: bool = False,
    ):
        super().__init__()
        for name, number in {"dim": dim, "depth": depth, "heads": heads}.items():
            check_whole(f"model.network.{name}", number)
        check_option("model.network.norm", norm, NORMS)
        check_option("model.network.mlp", mlp, MLPS)
        check_option("model.network.positions", positions, ("learned", "rotary"))
        if dim % heads:  # before rotary positions report the width of a head
            raise ValueError(f"dim={dim} is not a multiple of heads={heads}: change one of them")
        patterns = layer_patterns(pattern, depth)
        self.stream = stream
        self.learned_positions = positions == "learned"
        self.checkpointing = checkpointing
        self.text_embedding: nn.Module
        if isinstance(stream, CaptionStream):
            self.text_embedding = FeatureEmbedding(stream, dim)
        else:
            self.text_embedding = nn.Embedding(stream.text_embeddings, dim)
        self.image_embedding = nn.Embedding(stream.image_vocab, dim)
        if self.learned_positions:
            self.text_position = nn.Embedding(stream.first_image_position, dim)
            self.row_position = nn.Embedding(stream.grid, dim)
            self.column_position = nn.Embedding(stream.grid, dim)
            # Tables, because inductor computes a wrong gradient if a graph divides the index.
            # On the CPU even if the network is built on meta: `initialize` does not fill them.
            raster = torch.arange(stream.image_length, device="cpu")
            self.register_buffer("rows", raster // stream.grid, persistent=False)
            self.register_buffer("columns", raster % stream.grid, persistent=False)
        rotary = None
        if not self.learned_positions:
            rotary = Rotary(stream_angles(stream, dim // heads))
        (block_type,) = self.block_types
        self.blocks = nn.ModuleList(  # type: ignore[assignment]
            block_type(
                SelfAttention(dim, heads, pattern, stream, rotary, qk_norm),
                MLPS[mlp](dim),
                partial(NORMS[norm], dim),
            )
            for pattern in patterns
        )
        self.norm = NORMS[norm](dim)
        classes = stream.text_classes
        self.text_head = Float32Linear(dim, classes) if classes else None
        self.image_head = Float32Linear(dim, stream.image_vocab)
        self.initialize(self.modules())

    def embed_text(self, text: Tensor) -> Tensor:
        if isinstance(self.stream, TokenStream):
            text = self.stream.text_inputs(text)
        states = self.text_embedding(text)
        if not self.learned_positions:
            return states
        return states + self.text_position.weight[: states.shape[1]]

    def add_image_positions(self, states: Tensor, first_index: int | Tensor) -> Tensor:
        if not self.learned_positions:
            return states
        index = first_index + torch.arange(states.shape[1], device=states.device)
        return (
            states + self.row_position(self.rows[index]) + self.column_position(self.columns[index])
        )
