"""Interface of a network that can be trained and sampled as the prior."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from torch import Tensor, nn

from tilewright.prior.stream import BaseStream


class Prior(Protocol):
    """Autoregressive network over the stream, an `nn.Module`. `Transformer` implements it.

    `PriorModule`, `sample`, `complete`, `log_likelihood`, `TextToImage`, low-precision weights and
    FSDP use a network only through these members. `text` is the text of the stream: text tokens
    [B, T], which are negative after the caption's end, or features [B, T, D + 1].
    """

    stream: BaseStream
    """Token layout."""

    @property
    def block_types(self) -> tuple[type[nn.Module], ...]:
        """Classes of the repeated blocks. FSDP shards and PowerSGD compresses each by itself."""
        ...

    @property
    def cache_bytes(self) -> int:
        """Memory of the cache of one image and its caption, in bytes. It limits batches."""
        ...

    def __call__(
        self, text: Tensor, image: Tensor, image_dropout_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Computes the logits of the whole stream (`forward`).

        Args:
            text: text of the stream.
            image: image tokens [B, h, w].
            image_dropout_mask: booleans [B, h, w], True for image tokens that are predicted but
                not visible as inputs. None drops nothing.

        Returns:
            Logits [B, T', text_classes] of the text tokens and [B, N, K] of the image tokens.
        """
        ...

    def prefill(
        self, text: Tensor, candidates: int, compiled_steps: bool = False
    ) -> tuple[Tensor, Any]:
        """Reads captions and returns the logits of image token 0 and the state for `step`.

        Args:
            text: text of the stream, for C captions.
            candidates: n, images per caption.
            compiled_steps: True if `step` will be compiled, with the index as a tensor.

        Returns:
            Logits [C * n, K], the candidates of a caption side by side, and a cache of any type.
        """
        ...

    def step(self, tokens: Tensor, index: int | Tensor, caches: Any) -> Tensor:
        """Reads one image token, updates the cache in place, and returns the next token's logits.

        Args:
            tokens: image tokens [C * n].
            index: index of these tokens in raster order: an int, or a tensor [1] after
                `prefill(..., compiled_steps=True)`.
            caches: cache from `prefill`.

        Returns:
            Logits [C * n, K] of image token `index` + 1.
        """
        ...

    def next_text(self, text: Tensor) -> Tensor:
        """Returns the logits [B, text_classes] of the text token after text tokens [B, n]."""
        ...

    def initialize(self, modules: Iterable[nn.Module]) -> None:
        """Samples the initial weights of some of the network's modules in place.

        FSDP calls it block by block if the network was built on the meta device.
        """
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """`nn.Module.parameters`."""
        ...

    def modules(self) -> Iterator[nn.Module]:
        """`nn.Module.modules`."""
        ...

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """`nn.Module.named_modules`."""
        ...
