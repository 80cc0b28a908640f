"""The prior's network: a decoder-only transformer over the stream (section 2.2)."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tilewright.prior.attention import LayerCache, Mask, SelfAttention, mask_on
from tilewright.prior.blocks import Block
from tilewright.prior.norms import NORMS
from tilewright.prior.patterns import PATTERNS, layer_patterns
from tilewright.prior.rotary import Rotary
from tilewright.prior.stream import Stream
from tilewright.training.compiling import allow_many_shapes


class Transformer(nn.Module):
    """Text tokens and image tokens to the logits of each next token.

    Text positions predict text and padding tokens, image positions predict image tokens; two
    output matrices, because no position may predict the other kind.

    Args:
        stream: the layout and the vocabularies.
        dim: width; heads: number of heads; depth: number of blocks.
        pattern: "paper" for the paper's order of row, column and convolutional layers, or the name
            of one pattern for every layer ("full" is dense attention).
        norm: LayerNorm, as the paper's, or RMSNorm.
        mlp: a GELU network, as the paper's, or SwiGLU of as many parameters.
        positions: learned embeddings of text position, row and column, as the paper's, or rotary.
        qk_norm: normalize queries and keys.
        checkpointing: keep only each block's input for the backward pass and compute the rest
            again: far less memory for about a third more time.

    Raises:
        ValueError: the pattern is unknown, or dim is no multiple of heads.
    """

    rows: Tensor
    columns: Tensor
    block_types: tuple[type[Block]] = (Block,)  # a subclass may be a stack of others

    def __init__(
        self,
        stream: Stream,
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
        if pattern not in {"paper", *PATTERNS}:
            raise ValueError(f"pattern must be paper or one of {sorted(PATTERNS)}, got {pattern!r}")
        patterns = layer_patterns(depth) if pattern == "paper" else [pattern] * depth
        self.stream = stream
        self.learned_positions = positions == "learned"
        self.checkpointing = checkpointing
        self.text_embedding = nn.Embedding(stream.text_embeddings, dim)
        self.image_embedding = nn.Embedding(stream.image_vocab, dim)
        if self.learned_positions:
            self.text_position = nn.Embedding(stream.first_image_position, dim)
            self.row_position = nn.Embedding(stream.grid, dim)
            self.column_position = nn.Embedding(stream.grid, dim)
            # In tables: where positions are divided in a graph, inductor counts rows' gradients
            # wrong. On the CPU also where the network is built on meta.
            raster = torch.arange(stream.image_length, device="cpu")
            self.register_buffer("rows", raster // stream.grid, persistent=False)
            self.register_buffer("columns", raster % stream.grid, persistent=False)
        rotary = None if self.learned_positions else Rotary(stream, dim // heads)
        (block_type,) = self.block_types
        self.blocks = nn.ModuleList(
            block_type(dim, norm, mlp, SelfAttention(dim, heads, pattern, stream, rotary, qk_norm))
            for pattern in patterns
        )
        self.norm = NORMS[norm](dim)
        self.text_head = nn.Linear(dim, stream.text_classes)
        self.image_head = nn.Linear(dim, stream.image_vocab)
        self.initialize(self.modules())

    def initialize(self, modules: Iterable[nn.Module]) -> None:
        """Draws the weights of some of its layers, or of all.

        Normal with deviation 0.02; the residual branches' last layers shrink with the depth.
        """
        layers = [layer for layer in modules if isinstance(layer, nn.Linear | nn.Embedding)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.02)
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        last = {layer for block in blocks for layer in block.last_layers}
        for layer in layers:
            if layer in last:
                nn.init.normal_(layer.weight, std=0.02 / (2 * len(blocks)) ** 0.5)

    def embed_text(self, text: Tensor) -> Tensor:
        """Text tokens [B, n], negative past their end, to states [B, 1 + n, dim], start first."""
        start = text.new_full((len(text), 1), self.stream.start_token)
        states = self.text_embedding(torch.cat([start, self.stream.pad(text)], dim=1))
        if not self.learned_positions:
            return states
        return states + self.text_position.weight[: states.shape[1]]

    def embed_image(self, image: Tensor, first: int | Tensor = 0) -> Tensor:
        """Image tokens [B, n], numbers `first` and on in raster order, to states [B, n, dim]."""
        states = self.image_embedding(image)
        if not self.learned_positions:
            return states
        index = first + torch.arange(image.shape[1], device=image.device)
        return (
            states + self.row_position(self.rows[index]) + self.column_position(self.columns[index])
        )

    def forward(
        self, text: Tensor, image: Tensor, hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits of the whole stream.

        Args:
            text: text tokens [B, T], negative past their end.
            image: image tokens [B, h, w].
            hidden: bool [B, h, w], image tokens that are not shown, only predicted.

        Returns:
            Logits [B, T, text_classes] of the text and [B, N, K] of the image tokens.
        """
        shown = self.embed_image(image.flatten(1)[:, :-1])
        if hidden is not None:
            shown = shown.masked_fill(hidden.flatten(1)[:, :-1, None], 0.0)
        x = torch.cat([self.embed_text(text), shown], dim=1)
        for block, mask in zip(self.blocks, self.masks(x), strict=True):
            if self.checkpointing and self.training:
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        text_states, image_states = self.norm(x).split(
            [self.stream.text_length, self.stream.image_length], dim=1
        )
        return self.text_head(text_states).float(), self.image_head(image_states).float()

    @torch.compiler.disable  # a graph that made them would make them again in every update
    def masks(self, x: Tensor) -> list[Mask]:
        """Each block's mask, of its pattern, for states like x."""
        device = x.device.type
        half = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if half else x.dtype
        masks = []
        for block in self.blocks:
            assert isinstance(block, Block)
            masks.append(mask_on(block.attention.pattern, self.stream, x.device, dtype))
        return masks

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles the blocks: those of one pattern are alike and compiled once."""
        allow_many_shapes()
        for block in self.blocks:
            block.compile(*args, **kwargs)

    def prefill(self, text: Tensor, candidates: int) -> tuple[Tensor, list[LayerCache]]:
        """Reads captions [C, T] once; the logits [C * n, K] of image token 0, and the caches."""
        x, caches = self.embed_text(text), []
        for block in self.blocks:
            assert isinstance(block, Block)
            x, cache = block.prefill(x, candidates)
            caches.append(cache)
        logits = self.image_head(self.norm(x[:, -1])).float()
        return logits.repeat_interleave(candidates, dim=0), caches

    def next_text(self, text: Tensor) -> Tensor:
        """Logits [B, text_classes] of the text token that follows text tokens [B, n]."""
        x = self.embed_text(text)
        for block in self.blocks:
            assert isinstance(block, Block)
            x, _ = block.prefill(x, candidates=0)
        return self.text_head(self.norm(x[:, -1])).float()

    def step(self, tokens: Tensor, number: int | Tensor, caches: list[LayerCache]) -> Tensor:
        """Reads image token `number` [B]; the logits [B, K] of the next one.

        A number in a tensor [1] costs some more, and makes every step the same to a compiler.
        """
        x = self.embed_image(tokens[:, None], number).squeeze(1)
        for block, cache in zip(self.blocks, caches, strict=True):
            assert isinstance(block, Block)
            x = block.step(x, number, cache)
        return self.image_head(self.norm(x)).float()
