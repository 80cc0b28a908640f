"""Protocol of image tokenizers, which convert images to image tokens and back."""

import hashlib
from collections.abc import Mapping
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

BATCH_PIXELS = 2**21  # of one batch: 32 images of 256x256, or 8 of 512x512


class ImageTokenizer(Protocol):
    """Encoder and decoder of image tokens, an `nn.Module`: a dVAE or a pretrained VQ model.

    The token cache identifies it by its class name, its state dict and its `extra_repr`. A setting
    that changes the tokens must therefore be in one of them.

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


def split_batches(rows: Tensor, image_size: int, batch_size: int = 128) -> tuple[Tensor, ...]:
    """Splits images, or their tokens, into batches whose images have at most `BATCH_PIXELS`.

    Args:
        rows: one row per image.
        image_size: side of the images in pixels.
        batch_size: maximum number of images in a batch.
    """
    return rows.split(min(batch_size, max(1, BATCH_PIXELS // image_size**2)))


def encode_images(
    image_tokenizer: ImageTokenizer, images: Tensor, device: torch.device | str
) -> Tensor:
    """Encodes any number of images [B, 3, H, W] in [0, 1], in batches that `split_batches` limits.

    Args:
        device: device of the image tokenizer.
    """
    batches = split_batches(images, image_tokenizer.image_size)
    return torch.cat([image_tokenizer.encode(batch.to(device)) for batch in batches])


def weights_digest(weights: torch.nn.Module | Mapping[str, Tensor]) -> str:
    """Returns a short hash of a module's state dict."""
    state = weights.state_dict() if isinstance(weights, torch.nn.Module) else weights
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        # As bytes, because NumPy has no bf16.
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def module_device(module: torch.nn.Module) -> torch.device:
    """Returns the device of a module's weights and buffers, or the CPU if it has none."""
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))
