"""Networks and loss of the ranker, a small CLIP.

The paper ranks candidates with a pretrained CLIP (section 2.6). This one is trained on the same
captioned images as the prior.
"""

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilewright.checks import check_whole
from tilewright.training.compiling import raise_recompile_limit
from tilewright.training.precision import Float32Linear

MAX_SCALE = 100.0  # upper bound of the logit scale, as in CLIP, for stable training


class Block(nn.Module):
    """Pre-norm bidirectional attention and a feed-forward network, each in a residual branch.

    All matrices are linear layers, to which Muon and weight decay apply.

    Args:
        dim: width, a multiple of heads.
        heads: number of attention heads.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim={dim} is not a multiple of heads={heads}: change one of them")
        self.heads = heads
        self.norm_attention = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm_mlp = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)
        for layer in (self.qkv, self.out, self.up, self.down):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Computes states [B, L, dim] from all visible positions (booleans [B, 1, 1, L])."""
        qkv = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_mlp(x))))


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
        self.position = nn.Parameter(torch.empty(1 + length, dim))
        nn.init.normal_(self.position, std=0.02)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        """Encodes text tokens [B, n], n <= T, negative after the caption, as vectors [B, dim]."""
        # Position 0 holds the summary token, a zero vector that is never masked.
        states = F.pad(self.embedding(text.clamp(min=0)), (0, 0, 1, 0))
        visible = F.pad(text >= 0, (1, 0), value=True)[:, None, None]
        states = states + self.position[: states.shape[1]]
        for block in self.blocks:
            states = block(states, visible)
        return self.norm(states[:, 0])


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
        self.position = nn.Parameter(torch.empty(1 + grid**2, dim))
        nn.init.normal_(self.position, std=0.02)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """Encodes images [B, 3, H, W] in [0, 1] as vectors [B, dim]."""
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"images must be [B, 3, {self.image_size}, {self.image_size}], "
                f"got {list(images.shape)}"
            )
        patches = self.stem(images * 2 - 1).flatten(2).transpose(1, 2)
        states = F.pad(patches, (0, 0, 1, 0)) + self.position  # position 0 is the summary token
        for block in self.blocks:
            states = block(states)
        return self.norm(states[:, 0])


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

    Raises:
        UserError: a number is not possible.
        ValueError: the sizes do not fit together.
    """

    block_types = (Block,)

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
        sizes = {"text_vocab": text_vocab, "text_length": text_length, "image_size": image_size}
        sizes |= {"grid": grid, "embedding": embedding, "dim": dim, "heads": heads}
        sizes |= {"text_depth": text_depth, "image_depth": image_depth}
        for name, size in sizes.items():
            check_whole(f"model.network.{name}", size)
        self.text_vocab, self.text_length = text_vocab, text_length
        self.image_size = image_size
        self.text = TextEncoder(text_vocab, text_length, dim=dim, depth=text_depth, heads=heads)
        self.image = ImageEncoder(image_size, grid, dim=dim, depth=image_depth, heads=heads)
        self.text_out = Float32Linear(dim, embedding, bias=False)
        self.image_out = Float32Linear(dim, embedding, bias=False)
        # CLIP's initial temperature, 0.07. One element, because FSDP cannot shard a scalar.
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compiles both encoders, because training calls each of them directly."""
        raise_recompile_limit()
        self.text.compile(*args, **kwargs)
        self.image.compile(*args, **kwargs)

    def encode_text(self, text: Tensor) -> Tensor:
        """Encodes text tokens [B, T], negative after the caption, as unit vectors [B, D]."""
        text = text[:, : int((text >= 0).sum(dim=1).max())]  # drops columns without text
        return F.normalize(self.text_out(self.text(text)), dim=-1)

    def encode_images(self, images: Tensor) -> Tensor:
        """Encodes images [B, 3, H, W] in [0, 1] as unit vectors [B, D]."""
        return F.normalize(self.image_out(self.image(images)), dim=-1)

    @property
    def scale(self) -> Tensor:
        """Logit scale, the inverse of the softmax temperature."""
        return self.log_scale.exp().squeeze()

    @torch.no_grad()
    def bound_scale(self) -> None:
        """Sets a logit scale above `MAX_SCALE` to it.

        A bound in `scale` itself would have no gradient, so the scale could not fall again.
        """
        self.log_scale.clamp_(max=math.log(MAX_SCALE))


def contrastive_loss(
    text: Tensor,
    images: Tensor,
    scale: Tensor,
    negatives: Tensor | None = None,
    is_negative: Tensor | None = None,
) -> Tensor:
    """Returns CLIP's symmetric cross-entropy between captions and images, in nats.

    Args:
        text: unit vectors [B, D] of the captions.
        images: unit vectors [B, D] of their images, in the same order.
        scale: logit scale.
        negatives: unit vectors [M, D] of additional images that match no caption.
        is_negative: booleans [M], False for negatives to leave out. None uses all.
    """
    pair = torch.arange(len(text), device=text.device)
    with torch.autocast(text.device.type, enabled=False):
        image_logits = scale * images @ text.T
        text_logits = image_logits.T
        if negatives is not None:
            negative_logits = scale * text @ negatives.T
            if is_negative is not None:
                negative_logits = negative_logits.masked_fill(~is_negative, -torch.inf)
            text_logits = torch.cat([text_logits, negative_logits], dim=1)
    return (F.cross_entropy(text_logits, pair) + F.cross_entropy(image_logits, pair)) / 2


def make_cutmix_negatives(images: Tensor) -> Tensor:
    """Replaces a random rectangle of each image [B, 3, H, W], as CutMix does.

    The rectangle comes from the previous image of the batch, or from the same image shifted by up
    to a quarter of its size. Bad samples of a prior look alike: each part is fine, the whole is
    not, and all of it often has one color. A rectangle of background may leave an image unchanged.
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
