"""Networks and loss of the ranker, a small CLIP.

The paper ranks candidates with a pretrained CLIP (section 2.6). This one is trained on the same
captioned images as the prior.
"""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_SCALE = 100.0  # upper bound of the logit scale, as in CLIP, for stable training


class TextEncoder(nn.Module):
    """Bidirectional transformer that turns text tokens into one vector.

    Args:
        vocab: size of the text vocabulary.
        length: T, maximum number of text tokens.
        dim: width.
        depth: number of blocks.
        heads: number of attention heads.
    """

    def __init__(self, vocab: int, length: int, *, dim: int, depth: int, heads: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        self.position = nn.Parameter(torch.randn(1 + length, dim) * 0.02)
        self.blocks = _make_blocks(dim, depth, heads)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        """Encodes text tokens [B, T], negative after the caption, as vectors [B, dim]."""
        text = text[:, : int((text >= 0).sum(dim=1).max())]  # drops columns without text
        # Position 0 holds the summary token, a zero vector that is never masked.
        states = F.pad(self.embedding(text.clamp(min=0)), (0, 0, 1, 0))
        padding = F.pad(text < 0, (1, 0))
        states = states + self.position[: states.shape[1]]
        return self.blocks(states, src_key_padding_mask=padding)[:, 0]


class ImageEncoder(nn.Module):
    """Convolutions down to a grid of patches, then a transformer, which turn images into vectors.

    The convolutions overlap, so the features of an outline do not depend on the patch borders.

    Args:
        image_size: side of the images, in pixels.
        grid: patches per side; image_size must be grid times 2, 4, 8, ...
        dim, depth, heads: see `TextEncoder`.

    Raises:
        ValueError: image_size is not grid times a power of two.
    """

    def __init__(self, image_size: int, grid: int, *, dim: int, depth: int, heads: int):
        super().__init__()
        halvings = round(math.log2(max(image_size // grid, 1)))
        if grid * 2**halvings != image_size or halvings < 1:
            raise ValueError(
                f"image_size={image_size} is not grid={grid} times 2, 4, 8, ...: change one of them"
            )
        self.image_size = image_size
        widths = [3, *(max(dim >> (halvings - 1 - i), 16) for i in range(halvings))]
        layers: list[nn.Module] = []
        for in_width, out_width in itertools.pairwise(widths):
            layers += [nn.Conv2d(in_width, out_width, 3, stride=2, padding=1), nn.GELU()]
        self.stem = nn.Sequential(*layers, nn.Conv2d(widths[-1], dim, 1))
        self.position = nn.Parameter(torch.randn(1 + grid**2, dim) * 0.02)
        self.blocks = _make_blocks(dim, depth, heads)

    def forward(self, images: Tensor) -> Tensor:
        """Encodes images [B, 3, H, W] in [0, 1] as vectors [B, dim]."""
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"images must be [B, 3, {self.image_size}, {self.image_size}], "
                f"got {list(images.shape)}"
            )
        patches = self.stem(images * 2 - 1).flatten(2).transpose(1, 2)
        states = F.pad(patches, (0, 0, 1, 0)) + self.position  # position 0 is the summary token
        return self.blocks(states)[:, 0]


class DualEncoder(nn.Module):
    """Text encoder and image encoder with a shared embedding space, as in CLIP.

    Args:
        text_vocab: size of the text vocabulary.
        text_length: T, maximum number of text tokens.
        image_size: side of the images, in pixels.
        grid: patches per side in the image encoder.
        embedding: D, size of the embeddings.
        dim: width of both encoders.
        heads: number of attention heads of both encoders.
        text_depth: number of blocks of the text encoder.
        image_depth: number of blocks of the image encoder.
    """

    block_types = (nn.TransformerEncoderLayer,)

    def __init__(
        self,
        *,
        text_vocab: int,
        text_length: int,
        image_size: int,
        grid: int,
        embedding: int = 128,
        dim: int = 128,
        heads: int = 4,
        text_depth: int = 2,
        image_depth: int = 4,
    ):
        super().__init__()
        self.text_vocab, self.text_length = text_vocab, text_length
        self.image_size = image_size
        self.text = TextEncoder(text_vocab, text_length, dim=dim, depth=text_depth, heads=heads)
        self.image = ImageEncoder(image_size, grid, dim=dim, depth=image_depth, heads=heads)
        self.text_out = nn.Linear(dim, embedding, bias=False)
        self.image_out = nn.Linear(dim, embedding, bias=False)
        # CLIP's initial temperature, 0.07. One element, because FSDP cannot shard a scalar.
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))

    def encode_text(self, text: Tensor) -> Tensor:
        """Encodes text tokens [B, T], negative after the caption, as unit vectors [B, D]."""
        return F.normalize(self.text_out(self.text(text)).float(), dim=-1)

    def encode_images(self, images: Tensor) -> Tensor:
        """Encodes images [B, 3, H, W] in [0, 1] as unit vectors [B, D]."""
        return F.normalize(self.image_out(self.image(images)).float(), dim=-1)

    @property
    def scale(self) -> Tensor:
        """Logit scale, the inverse of the softmax temperature."""
        return self.log_scale.clamp(max=math.log(MAX_SCALE)).exp().squeeze()


def contrastive_loss(
    text: Tensor, images: Tensor, scale: Tensor, negatives: Tensor | None = None
) -> Tensor:
    """Returns CLIP's symmetric cross-entropy between captions and images, in nats.

    Args:
        text: unit vectors [B, D] of the captions.
        images: unit vectors [B, D] of their images, in the same order.
        scale: logit scale.
        negatives: unit vectors [M, D] of additional images that match no caption.
    """
    pair = torch.arange(len(text), device=text.device)
    all_images = images if negatives is None else torch.cat([images, negatives])
    text_loss = F.cross_entropy(scale * text @ all_images.T, pair)
    image_loss = F.cross_entropy(scale * images @ text.T, pair)
    return (text_loss + image_loss) / 2


def make_cutmix_negatives(images: Tensor) -> Tensor:
    """Replaces a random rectangle of each image [B, 3, H, W], as CutMix does.

    The rectangle comes from the previous image of the batch, or from the same image shifted by up
    to a quarter of its size. Bad samples of a prior look alike: each part is fine, the whole is
    not, and all of it often has one color.
    """
    batch, _, height, width = images.shape

    def random(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, device=images.device)

    def random_interval(side: int) -> Tensor:
        """Returns True between two random positions, [B, side]."""
        ends = random(2).sort(dim=1).values * side
        centers = torch.arange(side, device=images.device) + 0.5
        return (ends[:, :1] <= centers) & (centers < ends[:, 1:])

    def shifted_indices(side: int) -> Tensor:
        """Returns the source index of each pixel after a random cyclic shift, [B, side]."""
        shift = ((random(1) - 0.5) * side / 2).round().long()
        return (torch.arange(side, device=images.device) + shift) % side

    rectangle = random_interval(height)[:, None, :, None] & random_interval(width)[:, None, None, :]
    rows, columns = shifted_indices(height), shifted_indices(width)
    shifted = images.gather(2, rows[:, None, :, None].expand_as(images))
    shifted = shifted.gather(3, columns[:, None, None, :].expand_as(images))
    source = torch.where(random(1, 1, 1) < 0.5, shifted, images.roll(1, dims=0))
    return torch.where(rectangle, source, images)


def _make_blocks(dim: int, depth: int, heads: int) -> nn.TransformerEncoder:
    block = nn.TransformerEncoderLayer(
        dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    encoder = nn.TransformerEncoder(block, depth, nn.LayerNorm(dim), enable_nested_tensor=False)
    for parameter in encoder.parameters():  # nn.TransformerEncoder initializes all blocks alike
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
    return encoder
