"""Protocol of image tokenizers, which convert images to image tokens and back."""

import hashlib
from typing import Protocol

import torch
from torch import Tensor


class ImageTokenizer(Protocol):
    """Encoder of images to image tokens, and decoder: a dVAE or a pretrained VQ model.

    Attributes:
        image_size: side of the images in pixels.
        grid: side of the grid of image tokens.
        num_tokens: size of the codebook.
    """

    image_size: int
    grid: int
    num_tokens: int

    def encode(self, images: Tensor) -> Tensor:
        """Encodes images, float [B, 3, H, W] in [0, 1], to image tokens, int64 [B, h, w]."""
        ...

    def decode(self, tokens: Tensor) -> Tensor:
        """Decodes image tokens, int64 [B, h, w], to images, float [B, 3, H, W] in [0, 1]."""
        ...


def weights_digest(module: torch.nn.Module) -> str:
    """Returns a short hash of a module's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
