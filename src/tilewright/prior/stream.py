"""The stream: one sequence of tokens for a caption and its picture (section 2.2).

    input     start  t_0  t_1 ... t_T-1  i_0   i_1 ... i_N-2
    target    t_0    t_1  t_2 ... i_0    i_1   i_2 ... i_N-1
    position  0      1    2   ... T      T+1   T+2 ... T+N-1

Only this module knows the layout; the masks, the transformer, the loss and the sampler ask it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Stream:
    """Lengths and vocabularies of the two halves, and the layout that follows from them.

    Args:
        text_length: T, text positions of a caption.
        text_vocab: number of BPE tokens.
        grid: side of the grid of image tokens; N = grid^2.
        image_vocab: K, number of image tokens.
        padding_targets: which padding positions count in the text loss. The first padding token
            says that the caption has ended, so a model that completes captions must learn it; those
            after it are certain and would only dilute the loss. "first" counts it alone, "all"
            counts every one, "none" counts none.
    """

    text_length: int = 256
    text_vocab: int = 16384
    grid: int = 32
    image_vocab: int = 8192
    padding_targets: Literal["first", "all", "none"] = "first"

    @property
    def image_length(self) -> int:
        """N, the number of image tokens."""
        return self.grid**2

    @property
    def length(self) -> int:
        """Positions that the transformer computes: the last image token is never an input."""
        return self.text_length + self.image_length

    @property
    def first_image_position(self) -> int:
        """The position whose input is image token 0; all before it are start and text."""
        return self.text_length + 1

    @property
    def start_token(self) -> int:
        """The start token's row in the text embedding, behind BPE and padding tokens."""
        return self.text_vocab + self.text_length

    @property
    def text_embeddings(self) -> int:
        """Rows of the text embedding: BPE tokens, a padding token for each position, the start."""
        return self.text_vocab + self.text_length + 1

    @property
    def text_classes(self) -> int:
        """Classes of a text prediction: BPE tokens and padding tokens."""
        return self.text_vocab + self.text_length

    def pad(self, text: Tensor) -> Tensor:
        """Text tokens [B, n], negative past their end, to the same with padding tokens there.

        Each position has a padding token of its own, and all of them are attended to. n is T, or
        less where only a caption's beginning is looked at.
        """
        padding = self.text_vocab + torch.arange(text.shape[1], device=text.device)
        return torch.where(text < 0, padding, text)

    def empty_captions(self, count: int, device: torch.device | None = None) -> Tensor:
        """`count` captions [count, T] without a token: what guidance steers away from."""
        return torch.full((count, self.text_length), -1, device=device)

    def nats(
        self, text_logits: Tensor, image_logits: Tensor, text: Tensor, image: Tensor
    ) -> tuple[Tensor, Tensor]:
        """-ln p of every text token [B, T] and every image token [B, N], given all before it.

        Args:
            text_logits: [B, T, text_classes].
            image_logits: [B, N, K].
            text: text tokens [B, T], negative past their end.
            image: image tokens [B, h, w].
        """
        pairs = (text_logits, self.pad(text)), (image_logits, image.flatten(1))
        of_text, of_image = (
            F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            for logits, targets in pairs
        )
        return of_text.view_as(text), of_image.view(len(image), -1)

    def loss(
        self,
        text_logits: Tensor,
        image_logits: Tensor,
        text: Tensor,
        image: Tensor,
        text_targets: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The means of `nats` over text and image tokens, and their weighted sum as `loss`.

        Args:
            text_targets: by what the sum over text tokens is divided; None is the number of those
                that count.
        """
        of_text, of_image = self.nats(text_logits, image_logits, text, image)
        counted = self.counts(text)
        targets = counted.sum() if text_targets is None else text_targets
        return self.weigh((of_text * counted).sum() / targets.clamp(min=1), of_image.mean())

    @staticmethod
    def weigh(text: Tensor, image: Tensor) -> dict[str, Tensor]:
        """The nats of a text token and of an image token, and 1/8 and 7/8 of them as `loss`."""
        return {"loss": text / 8 + image * 7 / 8, "text": text, "image": image}

    def counts(self, text: Tensor) -> Tensor:
        """Which text positions [B, T] count in the loss, by `padding_targets`."""
        is_token = text >= 0
        if self.padding_targets == "all":
            return torch.ones_like(is_token)
        if self.padding_targets == "none":
            return is_token
        follows_token = F.pad(is_token[:, :-1], (1, 0), value=True)
        return is_token | follows_token
