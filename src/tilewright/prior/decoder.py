"""Base class of the prior's networks: decoder-only transformers over a stream (section 2.2)."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tilewright.prior.attention import Mask, attention_mask, hide_padding
from tilewright.prior.blocks import Block
from tilewright.prior.kv_cache import CompiledLayerCache, EagerLayerCache, LayerCache
from tilewright.prior.patterns import cache_slots, dense_mask
from tilewright.prior.stream import BaseStream
from tilewright.training.compiling import outside_graphs, raise_recompile_limit


class Decoder(nn.Module, ABC):
    """Predicts each next token of a stream from all tokens before it.

    Text positions predict text tokens, image positions predict image tokens. Each kind has its own
    output layer. A subclass builds the layers, embeds text and adds learned positions of images.
    """

    stream: BaseStream
    image_embedding: nn.Embedding
    blocks: Sequence[Block]
    norm: nn.Module
    text_head: nn.Module | None  # None if the stream does not predict text
    image_head: nn.Module
    checkpointing: bool
    block_types: tuple[type[Block]] = (Block,)  # a subclass can use another block

    @abstractmethod
    def embed_text(self, text: Tensor) -> Tensor:
        """Embeds the text, and the start token if there is one, as states [B, positions, dim]."""

    def embed_image(
        self, image: Tensor, first_index: int | Tensor = 0, dropped: Tensor | None = None
    ) -> Tensor:
        """Embeds image tokens [B, n] as states [B, n, dim].

        Args:
            first_index: index of the first token in raster order.
            dropped: booleans [B, n], True for tokens whose embedding is replaced by zeros. Their
                learned position remains. None drops nothing.
        """
        states = self.image_embedding(image)
        if dropped is not None:
            states = states.masked_fill(dropped[..., None], 0.0)
        return self.add_image_positions(states, first_index)

    def add_image_positions(self, states: Tensor, first_index: int | Tensor) -> Tensor:
        """Adds learned positions to states [B, n, dim] of image tokens.

        A network without learned positions returns the states.

        Args:
            first_index: index of the first token in raster order.
        """
        return states

    def visible_text(self, text: Tensor) -> Tensor | None:
        """Returns booleans [B, T], False for text that no later position attends to, or None."""
        return None

    def initialize(self, modules: Iterable[nn.Module]) -> None:
        """Samples the initial weights of the given layers.

        Weights are normal with standard deviation 0.02. The last layers of residual branches are
        scaled down with the depth.
        """
        layers = [layer for layer in modules if isinstance(layer, nn.Linear | nn.Embedding)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.02)
            if isinstance(layer, nn.Linear) and layer.bias is not None:
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
            text: text of the stream, such as text tokens [B, T].
            image: image tokens [B, h, w].
            image_dropout_mask: booleans [B, h, w], True for image tokens that are predicted but
                not visible as inputs. None drops nothing.

        Returns:
            Logits [B, T', text_classes] of the text tokens and [B, N, K] of the image tokens.
        """
        dropped = None
        if image_dropout_mask is not None:
            dropped = image_dropout_mask.flatten(1)[:, :-1]
        image_inputs = self.embed_image(image.flatten(1)[:, :-1], dropped=dropped)
        x = torch.cat([self.embed_text(text), image_inputs], dim=1)
        for block, mask in zip(self.blocks, self.masks(x, text), strict=True):
            if self.checkpointing and self.training:
                x = checkpoint(block, x, mask, use_reentrant=False)
            else:
                x = block(x, mask)
        num_text, num_image = self.stream.predicted_text, self.stream.image_length
        not_predicted = self.stream.length - num_text - num_image
        text_states, _, image_states = self.norm(x).split(
            [num_text, not_predicted, num_image], dim=1
        )
        return self._text_logits(text_states), self.image_head(image_states)

    def _text_logits(self, states: Tensor) -> Tensor:
        if self.text_head is None:
            return states.new_empty(*states.shape[:-1], 0)
        return self.text_head(states)

    @outside_graphs  # a graph would rebuild the masks in every update
    def masks(self, x: Tensor, text: Tensor) -> list[Mask]:
        """Returns the attention mask of each block, for the device and dtype of x."""
        patterns = [block.attention.pattern for block in self.blocks]
        visible = self.visible_text(text)
        if visible is not None:
            masks = {
                pattern: hide_padding(dense_mask(pattern, self.stream).to(x.device), visible)
                for pattern in set(patterns)
            }
            return [masks[pattern] for pattern in patterns]
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        return [attention_mask(pattern, self.stream, x.device, dtype) for pattern in patterns]

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles each block. Blocks with the same pattern share one compilation."""
        raise_recompile_limit()
        for block in self.blocks:
            block.compile(*args, **kwargs)

    @property
    def cache_bytes(self) -> int:
        """Memory of the keys and values of one image and its caption in fp32, in bytes."""
        width = self.image_embedding.embedding_dim
        slots = [cache_slots(block.attention.pattern, self.stream).count for block in self.blocks]
        return 8 * width * (sum(slots) + len(slots) * self.stream.first_image_position)

    def prefill(
        self, text: Tensor, candidates: int, compiled_steps: bool = False
    ) -> tuple[Tensor, list[LayerCache]]:
        """Reads captions and fills the KV caches.

        Args:
            text: text of the stream, such as text tokens [C, T].
            candidates: n, images per caption.
            compiled_steps: True if `step` will be compiled, with the index as a tensor.

        Returns:
            Logits [C * n, K] of image token 0, and one cache per block.
        """
        x, caches = self.embed_text(text), []
        visible = self.visible_text(text)
        mask = None
        if visible is not None:
            causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
            mask = hide_padding(causal, visible)
        for block in self.blocks:
            x, k, v = block.prefill(x, mask)
            caches.append(self._layer_cache(block, k, v, visible, candidates, compiled_steps))
        logits = self.image_head(self.norm(x[:, -1]))
        return logits.repeat_interleave(candidates, dim=0), caches

    @outside_graphs  # a graph would trace `cache_slots`, a loop over positions
    def _layer_cache(
        self,
        block: Block,
        k: Tensor,
        v: Tensor,
        visible_text: Tensor | None,
        candidates: int,
        compiled_steps: bool,
    ) -> LayerCache:
        slots = cache_slots(block.attention.pattern, self.stream)
        cache_type = CompiledLayerCache if compiled_steps else EagerLayerCache
        return cache_type(k, v, candidates, slots, visible_text)

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
        return self._text_logits(self.norm(x[:, -1]))
