"""The stream: one sequence for a caption and its image (section 2.2).

`Stream` is the paper's:

    input     start  t_0  t_1 ... t_T-1  i_0   i_1 ... i_N-2
    target    t_0    t_1  t_2 ... i_0    i_1   i_2 ... i_N-1
    position  0      1    2   ... T      T+1   T+2 ... T+N-1

`PlainStream` and `CaptionStream` have no start token, so the text begins at position 0. Only this
module knows the layouts. Masks, transformer, loss and sampler ask it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from tilewright.checks import check_option, check_whole
from tilewright.errors import UserError

# Far above any use. Tables of positions beyond it would fill the memory.
MAX_LENGTH = 2**20

PaddingTargets = Literal["first", "all", "none"]


class BaseStream(ABC):
    """Layout of text and image: lengths and vocabularies, positions and loss.

    A subclass is a frozen dataclass, because masks are cached by stream. `text` is what a text
    encoder makes of captions: text tokens [B, T], or features of another shape [B, T, ...].
    """

    text_length: int
    """T, text positions per caption."""

    grid: int
    """Side of the image token grid; N = grid^2."""

    image_vocab: int
    """K, number of image tokens."""

    @property
    def image_length(self) -> int:
        """N, the number of image tokens."""
        return self.grid**2

    @property
    def length(self) -> int:
        """L, the number of input positions. The last image token is never an input."""
        return self.first_image_position + self.image_length - 1

    @property
    def first_image_position(self) -> int:
        """Position of image token 0. All text comes before it."""
        return self.text_length

    @property
    @abstractmethod
    def predicted_text(self) -> int:
        """T', the number of text tokens that are predicted: the last T' of the text."""

    @property
    @abstractmethod
    def text_classes(self) -> int:
        """Number of classes of a text prediction. 0 if text is not predicted."""

    @abstractmethod
    def without_caption(self, text: Tensor) -> Tensor:
        """Returns text of the same shape without a caption, for guidance."""

    @abstractmethod
    def text_targets(self, text: Tensor) -> Tensor:
        """Returns booleans [B, T], True for text positions that count in the loss."""

    @abstractmethod
    def text_nats(self, text_logits: Tensor, text: Tensor) -> Tensor:
        """Computes -ln p of every text token [B, T], and 0 for those that are not predicted.

        Args:
            text_logits: [B, T', text_classes].
        """

    def token_nats(
        self, text_logits: Tensor, image_logits: Tensor, text: Tensor, image: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Computes -ln p of every text token [B, T] and image token [B, N], given all before it.

        Args:
            text_logits: [B, T', text_classes].
            image_logits: [B, N, K].
            text: text of the stream.
            image: image tokens [B, h, w].
        """
        return self.text_nats(text_logits, text), _cross_entropies(image_logits, image.flatten(1))

    def loss(
        self,
        text_logits: Tensor,
        image_logits: Tensor,
        text: Tensor,
        image: Tensor,
    ) -> dict[str, Tensor]:
        """Computes the mean nats per token as `text` and `image`, and their weighted sum as `loss`.

        The logits and tokens are those of `token_nats`.
        """
        text_nats, image_nats = self.token_nats(text_logits, image_logits, text, image)
        is_target = self.text_targets(text)
        num_targets = is_target.sum().clamp(min=1)
        return self.weighted_loss((text_nats * is_target).sum() / num_targets, image_nats.mean())

    @staticmethod
    def weighted_loss(text: Tensor, image: Tensor) -> dict[str, Tensor]:
        """Returns `text`, `image` and `loss` = text/8 + 7 image/8, in nats per token."""
        return {"loss": text / 8 + image * 7 / 8, "text": text, "image": image}

    def _check_sizes(self, *names: str) -> None:
        for name in names:
            check_whole(f"model.network.stream.{name}", getattr(self, name))
        if self.length > MAX_LENGTH:
            raise UserError(
                f"text_length={self.text_length} and grid={self.grid} make a stream of "
                f"{self.length} positions: keep it to {MAX_LENGTH}"
            )


class TokenStream(BaseStream):
    """Layout with text tokens [B, T], which are negative after the caption's end.

    Args:
        text_vocab: number of text tokens.
        padding_targets: see `Stream`.
    """

    text_vocab: int
    padding_targets: PaddingTargets

    def __post_init__(self) -> None:
        self._check_sizes("text_length", "text_vocab", "grid", "image_vocab")
        name = "model.network.stream.padding_targets"
        check_option(name, self.padding_targets, get_args(PaddingTargets))

    @property
    @abstractmethod
    def text_embeddings(self) -> int:
        """Size of the text embedding."""

    @abstractmethod
    def text_inputs(self, text: Tensor) -> Tensor:
        """Returns the ids of the text embedding at all positions that text tokens [B, n] fill."""

    @abstractmethod
    def pad(self, text: Tensor) -> Tensor:
        """Replaces negative text tokens [B, n] by padding tokens. Attention does not mask them."""

    @abstractmethod
    def unpad(self, text: Tensor) -> Tensor:
        """Replaces padding tokens by -1, in predicted text tokens of any shape."""

    def without_caption(self, text: Tensor) -> Tensor:
        return torch.full_like(text, -1)

    def text_nats(self, text_logits: Tensor, text: Tensor) -> Tensor:
        first = self.text_length - self.predicted_text
        nats = _cross_entropies(text_logits, self.pad(text)[:, first:])
        return F.pad(nats, (first, 0))

    def text_targets(self, text: Tensor) -> Tensor:
        is_token = text >= 0
        if self.padding_targets == "all":
            return torch.ones_like(is_token)
        if self.padding_targets == "none":
            return is_token
        follows_token = F.pad(is_token[:, :-1], (1, 0), value=True)
        return is_token | follows_token


@dataclass(frozen=True)
class Stream(TokenStream):
    """The paper's layout: start token, text tokens with one padding token per position, image.

    Args:
        text_length: T, text positions per caption.
        text_vocab: number of BPE tokens.
        grid: side of the image token grid; N = grid^2.
        image_vocab: K, number of image tokens.
        padding_targets: padding positions that count in the text loss. "first" counts the first
            padding token, which marks the caption's end; a model needs it to complete captions.
            "all" also counts the padding after it, which is certain and dilutes the loss. "none"
            counts no padding.

    Raises:
        UserError: a setting is not possible, or the stream has more than `MAX_LENGTH` positions.
    """

    text_length: int = 256
    text_vocab: int = 16384
    grid: int = 32
    image_vocab: int = 8192
    padding_targets: PaddingTargets = "first"

    @property
    def first_image_position(self) -> int:
        """Position of image token 0. The start token and the text come before it."""
        return self.text_length + 1

    @property
    def start_token(self) -> int:
        """Id of the start token in the text embedding, after BPE and padding tokens."""
        return self.text_vocab + self.text_length

    @property
    def text_embeddings(self) -> int:
        """Size of the text embedding: BPE tokens, one padding token per position, start token."""
        return self.text_vocab + self.text_length + 1

    @property
    def text_classes(self) -> int:
        """Number of classes of a text prediction: BPE tokens and padding tokens."""
        return self.text_vocab + self.text_length

    @property
    def predicted_text(self) -> int:
        return self.text_length

    def text_inputs(self, text: Tensor) -> Tensor:
        """Returns the start token and the padded text tokens, [B, 1 + n]."""
        start = text.new_full((len(text), 1), self.start_token)
        return torch.cat([start, self.pad(text)], dim=1)

    def pad(self, text: Tensor) -> Tensor:
        """Replaces negative text tokens [B, n] by the padding token of their position."""
        padding = self.text_vocab + torch.arange(text.shape[1], device=text.device)
        return torch.where(text < 0, padding, text)

    def unpad(self, text: Tensor) -> Tensor:
        return torch.where(text < self.text_vocab, text, -1)


@dataclass(frozen=True)
class PlainStream(TokenStream):
    """Layout without a start token, and with one padding token for all positions (minDALL-E).

    The first text token is an input and never predicted.

    Args:
        text_length: T, text positions per caption.
        text_vocab: number of text tokens, padding included.
        grid: side of the image token grid; N = grid^2.
        image_vocab: K, number of image tokens.
        padding_token: id of the padding token.
        padding_targets: see `Stream`.

    Raises:
        UserError: a setting is not possible, or the stream has more than `MAX_LENGTH` positions.
    """

    text_length: int = 64
    text_vocab: int = 16384
    grid: int = 16
    image_vocab: int = 16384
    padding_token: int = 0
    padding_targets: PaddingTargets = "first"

    def __post_init__(self) -> None:
        super().__post_init__()
        name = "model.network.stream.padding_token"
        check_whole(name, self.padding_token, 0, self.text_vocab - 1)

    @property
    def text_embeddings(self) -> int:
        return self.text_vocab

    @property
    def text_classes(self) -> int:
        return self.text_vocab

    @property
    def predicted_text(self) -> int:
        return self.text_length - 1

    def text_inputs(self, text: Tensor) -> Tensor:
        return self.pad(text)

    def pad(self, text: Tensor) -> Tensor:
        return torch.where(text < 0, self.padding_token, text)

    def unpad(self, text: Tensor) -> Tensor:
        return torch.where(text == self.padding_token, -1, text)

    def text_targets(self, text: Tensor) -> Tensor:
        return F.pad(super().text_targets(text)[:, 1:], (1, 0))


@dataclass(frozen=True)
class CaptionStream(BaseStream):
    """Layout with features of a frozen text encoder in place of text tokens.

    Its text is float [B, T, D + 1]. The last channel is 1 where the caption has a token and 0 at
    padding, whose features are 0. Text is not predicted, so the loss is that of the image.

    Args:
        text_length: T, text positions per caption.
        features: D, width of the encoder's features.
        grid: side of the image token grid; N = grid^2.
        image_vocab: K, number of image tokens.

    Raises:
        UserError: a number is not possible, or the stream has more than `MAX_LENGTH` positions.
    """

    text_length: int = 120
    features: int = 2048
    grid: int = 16
    image_vocab: int = 16384

    def __post_init__(self) -> None:
        self._check_sizes("text_length", "features", "grid", "image_vocab")

    @property
    def predicted_text(self) -> int:
        return 0

    @property
    def text_classes(self) -> int:
        return 0

    def split(self, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Splits text [B, T, D + 1] into its parts.

        Returns:
            - features [B, T, D];
            - booleans [B, T], True for tokens of the caption;
            - booleans [B], True for texts without a caption.
        """
        features, is_token = text[..., :-1], text[..., -1] > 0
        return features, is_token, (features == 0).flatten(1).all(dim=1)

    def without_caption(self, text: Tensor) -> Tensor:
        """Returns text with features of 0. Its last channel remains that of the caption."""
        return torch.cat([torch.zeros_like(text[..., :-1]), text[..., -1:]], dim=-1)

    def text_targets(self, text: Tensor) -> Tensor:
        return torch.zeros_like(text[..., -1], dtype=torch.bool)

    def text_nats(self, text_logits: Tensor, text: Tensor) -> Tensor:
        return torch.zeros_like(text[..., -1], dtype=torch.float32)

    @staticmethod
    def weighted_loss(text: Tensor, image: Tensor) -> dict[str, Tensor]:
        """Returns `image` and `loss`, which are equal, in nats per token."""
        return {"loss": image, "image": image}


def _cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Computes -ln p [B, n] of targets [B, n] from logits [B, n, classes]."""
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return nats.view_as(targets)
