"""The prior's network: a decoder-only transformer over the stream (section 2.2)."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tilewright.checks import check_whole
from tilewright.prior.attention import Mask, SelfAttention, attention_mask
from tilewright.prior.blocks import Block
from tilewright.prior.kv_cache import CompiledLayerCache, EagerLayerCache, LayerCache
from tilewright.prior.norms import NORMS
from tilewright.prior.patterns import cache_slots, layer_patterns
from tilewright.prior.rotary import Rotary
from tilewright.prior.stream import Stream
from tilewright.training.compiling import raise_recompile_limit
from tilewright.training.precision import Float32Linear


class Transformer(nn.Module):
    """Predicts each next token of the stream from all tokens before it.

    Text positions predict text and padding tokens, image positions predict image tokens. Each kind
    has its own output layer.

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
        UserError: a number is not possible.
        ValueError: the pattern is unknown, or dim is not a multiple of heads.
    """

    rows: Tensor
    columns: Tensor
    blocks: Sequence[Block]
    block_types: tuple[type[Block]] = (Block,)  # a subclass can use another block

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
        for name, number in {"dim": dim, "depth": depth, "heads": heads}.items():
            check_whole(f"model.network.{name}", number)
        if dim % heads:  # before rotary positions report the width of a head
            raise ValueError(f"dim={dim} is not a multiple of heads={heads}: change one of them")
        patterns = layer_patterns(pattern, depth)
        self.stream = stream
        self.learned_positions = positions == "learned"
        self.checkpointing = checkpointing
        self.text_embedding = nn.Embedding(stream.text_embeddings, dim)
        self.image_embedding = nn.Embedding(stream.image_embeddings, dim)
        if self.learned_positions:
            self.text_position = nn.Embedding(stream.first_image_position, dim)
            self.row_position = nn.Embedding(stream.grid, dim)
            self.column_position = nn.Embedding(stream.grid, dim)
            # Tables, because inductor computes a wrong gradient if a graph divides the index.
            # On the CPU even if the network is built on meta: `initialize` does not fill them.
            raster = torch.arange(stream.image_length, device="cpu")
            self.register_buffer("rows", raster // stream.grid, persistent=False)
            self.register_buffer("columns", raster % stream.grid, persistent=False)
        rotary = None if self.learned_positions else Rotary(stream, dim // heads)
        (block_type,) = self.block_types
        self.blocks = nn.ModuleList(  # type: ignore[assignment]
            block_type(dim, norm, mlp, SelfAttention(dim, heads, pattern, stream, rotary, qk_norm))
            for pattern in patterns
        )
        self.norm = NORMS[norm](dim)
        self.text_head = Float32Linear(dim, stream.text_classes)
        self.image_head = Float32Linear(dim, stream.image_vocab)
        self.initialize(self.modules())

    def initialize(self, modules: Iterable[nn.Module]) -> None:
        """Samples the initial weights of the given layers.

        Weights are normal with standard deviation 0.02. The last layers of residual branches are
        scaled down with the depth.
        """
        layers = [layer for layer in modules if isinstance(layer, nn.Linear | nn.Embedding)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.02)
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
        last_layers = {layer for block in self.blocks for layer in block.last_layers}
        for layer in layers:
            if layer in last_layers:
                nn.init.normal_(layer.weight, std=0.02 / (2 * len(self.blocks)) ** 0.5)

    def forward(
        self, text: Tensor, image: Tensor, image_dropout_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Computes the logits of the whole stream.

        Args:
            text: text tokens [B, T], negative after the caption's end.
            image: image tokens [B, h, w].
            image_dropout_mask: booleans [B, h, w], True for image tokens that are predicted but
                not visible as inputs. None drops nothing.

        Returns:
            Logits [B, T, text_classes] of the text tokens and [B, N, K] of the image tokens.
        """
        tokens = image
        if image_dropout_mask is not None:
            tokens = image.masked_fill(image_dropout_mask, self.stream.hidden_token)
        x = torch.cat([self.embed_text(text), self.embed_image(tokens.flatten(1)[:, :-1])], dim=1)
        for block, mask in zip(self.blocks, self.masks(x), strict=True):
            if self.checkpointing and self.training:
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        text_states, image_states = self.norm(x).split(
            [self.stream.text_length, self.stream.image_length], dim=1
        )
        return self.text_head(text_states), self.image_head(image_states)

    def embed_text(self, text: Tensor) -> Tensor:
        """Embeds the start token and text tokens [B, n] as states [B, 1 + n, dim].

        Text tokens are negative after the caption's end.
        """
        start = text.new_full((len(text), 1), self.stream.start_token)
        states = self.text_embedding(torch.cat([start, self.stream.pad(text)], dim=1))
        if not self.learned_positions:
            return states
        return states + self.text_position.weight[: states.shape[1]]

    def embed_image(self, image: Tensor, first_index: int | Tensor = 0) -> Tensor:
        """Embeds image tokens [B, n] as states [B, n, dim].

        Args:
            first_index: index of the first token in raster order.
        """
        states = self.image_embedding(image)
        if not self.learned_positions:
            return states
        index = first_index + torch.arange(image.shape[1], device=image.device)
        return (
            states + self.row_position(self.rows[index]) + self.column_position(self.columns[index])
        )

    @torch.compiler.disable  # a graph would rebuild the masks in every update
    def masks(self, x: Tensor) -> list[Mask]:
        """Returns the attention mask of each block, for the device and dtype of x."""
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        patterns = [block.attention.pattern for block in self.blocks]
        return [attention_mask(pattern, self.stream, x.device, dtype) for pattern in patterns]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles each block. Blocks with the same pattern share one compilation."""
        raise_recompile_limit()
        for block in self.blocks:
            block.compile(*args, **kwargs)

    def prefill(
        self, text: Tensor, candidates: int, compiled_steps: bool = False
    ) -> tuple[Tensor, list[LayerCache]]:
        """Reads captions and fills the KV caches.

        Args:
            text: text tokens [C, T], negative after the caption's end.
            candidates: n, images per caption.
            compiled_steps: True if `step` will be compiled, with the index as a tensor.

        Returns:
            Logits [C * n, K] of image token 0, and one cache per block.
        """
        x, caches = self.embed_text(text), []
        for block in self.blocks:
            x, k, v = block.prefill(x)
            caches.append(self._layer_cache(block, k, v, candidates, compiled_steps))
        logits = self.image_head(self.norm(x[:, -1]))
        return logits.repeat_interleave(candidates, dim=0), caches

    @torch.compiler.disable  # a graph would trace `cache_slots`, a loop over positions
    def _layer_cache(
        self, block: Block, k: Tensor, v: Tensor, candidates: int, compiled_steps: bool
    ) -> LayerCache:
        slots = cache_slots(block.attention.pattern, self.stream)
        cache_type = CompiledLayerCache if compiled_steps else EagerLayerCache
        return cache_type(k, v, candidates, slots)

    def step(self, tokens: Tensor, index: int | Tensor, caches: list[LayerCache]) -> Tensor:
        """Reads one image token and returns the logits of the next one.

        Args:
            tokens: image tokens [C * n].
            index: index of these tokens in raster order: an int, or a tensor [1] after
                `prefill(..., compiled_steps=True)`.
            caches: caches from `prefill`, updated in place.

        Returns:
            Logits [C * n, K] of image token `index` + 1.
        """
        x = self.embed_image(tokens[:, None], index).squeeze(1)
        for block, cache in zip(self.blocks, caches, strict=True):
            x = block.step(x, index, cache)
        return self.image_head(self.norm(x))

    def next_text(self, text: Tensor) -> Tensor:
        """Returns the logits [B, text_classes] of the text token after text tokens [B, n]."""
        x = self.embed_text(text)
        for block in self.blocks:
            x, _, _ = block.prefill(x)
        return self.text_head(self.norm(x[:, -1]))
