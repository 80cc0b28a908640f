"""The stream: one token sequence for a caption and its image (section 2.2).

    input     start  t_0  t_1 ... t_T-1  i_0   i_1 ... i_N-2
    target    t_0    t_1  t_2 ... i_0    i_1   i_2 ... i_N-1
    position  0      1    2   ... T      T+1   T+2 ... T+N-1

Only this module knows the layout. Masks, transformer, loss and sampler ask it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tilewright.checks import check_whole
from tilewright.errors import UserError

# Far above any use. Tables of positions beyond it would fill the memory.
MAX_LENGTH = 2**20


@dataclass(frozen=True)
class Stream:
    """Token layout: lengths and vocabularies of text and image, positions and loss.

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
        UserError: a number is not possible, or the stream has more than `MAX_LENGTH` positions.
    """

    text_length: int = 256
    text_vocab: int = 16384
    grid: int = 32
    image_vocab: int = 8192
    padding_targets: Literal["first", "all", "none"] = "first"

    def __post_init__(self) -> None:
        for name in ("text_length", "text_vocab", "grid", "image_vocab"):
            check_whole(f"model.network.stream.{name}", getattr(self, name))
        if self.length > MAX_LENGTH:
            raise UserError(
                f"text_length={self.text_length} and grid={self.grid} make a stream of "
                f"{self.length} positions: keep it to {MAX_LENGTH}"
            )

    @property
    def image_length(self) -> int:
        """N, the number of image tokens."""
        return self.grid**2

    @property
    def length(self) -> int:
        """L = T + N, the number of input positions. The last image token is never an input."""
        return self.text_length + self.image_length

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
    def hidden_token(self) -> int:
        """Id of the hidden token in the image embedding, which replaces dropped image tokens."""
        return self.image_vocab

    @property
    def image_embeddings(self) -> int:
        """Size of the image embedding: image tokens, hidden token."""
        return self.image_vocab + 1

    @property
    def text_classes(self) -> int:
        """Number of classes of a text prediction: BPE tokens and padding tokens."""
        return self.text_vocab + self.text_length

    def pad(self, text: Tensor) -> Tensor:
        """Replaces negative text tokens by the padding token of their position.

        Padding tokens are not masked in attention.

        Args:
            text: text tokens [B, n], n <= T, negative after the caption's end.
        """
        padding = self.text_vocab + torch.arange(text.shape[1], device=text.device)
        return torch.where(text < 0, padding, text)

    def empty_captions(self, count: int, device: torch.device | None = None) -> Tensor:
        """Returns `count` captions [count, T] without a token, for guidance."""
        return torch.full((count, self.text_length), -1, device=device)

    def token_nats(
        self, text_logits: Tensor, image_logits: Tensor, text: Tensor, image: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Computes -ln p of every text token [B, T] and image token [B, N], given all before it.

        Args:
            text_logits: [B, T, text_classes].
            image_logits: [B, N, K].
            text: text tokens [B, T], negative after the caption's end.
            image: image tokens [B, h, w].
        """
        pairs = (text_logits, self.pad(text)), (image_logits, image.flatten(1))
        text_nats, image_nats = (
            F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            for logits, targets in pairs
        )
        return text_nats.view_as(text), image_nats.view(len(image), -1)

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

    def text_targets(self, text: Tensor) -> Tensor:
        """Returns booleans [B, T], True for text positions that count in the loss.

        Args:
            text: text tokens [B, T], negative after the caption's end.
        """
        is_token = text >= 0
        if self.padding_targets == "all":
            return torch.ones_like(is_token)
        if self.padding_targets == "none":
            return is_token
        follows_token = F.pad(is_token[:, :-1], (1, 0), value=True)
        return is_token | follows_token
