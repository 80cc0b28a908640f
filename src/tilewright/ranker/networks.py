"""The ranker's networks: a caption and a picture become vectors that can be compared.

The paper picks the best of N candidates by a pretrained CLIP (section 2.6); this is the same idea
at any size, trained on one's own captioned pictures.
"""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST_SCALE = 100.0  # CLIP's bound on the factor before the softmax, for stable training


class TextEncoder(nn.Module):
    """Text tokens to one vector: a transformer that reads them in both directions.

    Args:
        vocab: number of text tokens; length: T, the most positions.
        dim: width; depth: number of blocks; heads: number of heads.
    """

    def __init__(self, vocab: int, length: int, *, dim: int, depth: int, heads: int):
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        self.position = nn.Parameter(torch.randn(1 + length, dim) * 0.02)
        self.blocks = _blocks(dim, depth, heads)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        """Text tokens [B, T], negative past their end, to states [B, dim]."""
        text = text[:, : int((text >= 0).sum(dim=1).max())]  # past the longest there is nothing
        states = F.pad(self.embedding(text.clamp(min=0)), (0, 0, 1, 0))  # room for the summary
        absent = F.pad(text < 0, (1, 0))  # the summary is always there: a caption may be empty
        states = self.blocks(states + self.position[: states.shape[1]], src_key_padding_mask=absent)
        return states[:, 0]


class ImageEncoder(nn.Module):
    """Images to one vector: convolutions down to a grid of patches, then a transformer.

    The convolutions overlap, so that an outline is the same thing wherever the patches cut it.

    Args:
        image_size: side of the images; grid: patches along it, image_size over a power of two.
        dim, depth, heads: as the text encoder's.

    Raises:
        ValueError: image_size is no power of two times grid.
    """

    def __init__(self, image_size: int, grid: int, *, dim: int, depth: int, heads: int):
        super().__init__()
        halvings = round(math.log2(max(image_size // grid, 1)))
        if grid * 2**halvings != image_size or halvings < 1:
            raise ValueError(
                f"image_size must be grid times 2, 4, 8, ..., got {image_size} and {grid}"
            )
        self.image_size = image_size
        widths = [3, *(max(dim >> (halvings - 1 - i), 16) for i in range(halvings))]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GELU()]
        self.stem = nn.Sequential(*layers, nn.Conv2d(widths[-1], dim, 1))
        self.position = nn.Parameter(torch.randn(1 + grid**2, dim) * 0.02)
        self.blocks = _blocks(dim, depth, heads)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to states [B, dim]."""
        if images.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"images must be [B, 3, {self.image_size}, {self.image_size}], "
                f"got {list(images.shape)}"
            )
        patches = self.stem(images * 2 - 1).flatten(2).transpose(1, 2)
        states = F.pad(patches, (0, 0, 1, 0)) + self.position  # ahead of them, the summary
        return self.blocks(states)[:, 0]


class DualEncoder(nn.Module):
    """A text encoder and an image encoder whose vectors lie close where they belong together.

    Args:
        text_vocab: number of text tokens; text_length: T, the most positions of a caption.
        image_size: side of the images; grid: patches along it.
        embedding: D, length of the vectors that are compared.
        dim, heads: width of both encoders, and their number of heads.
        text_depth, image_depth: their blocks.
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
        # CLIP's beginning; a vector, because a number cannot be sharded.
        self.log_scale = nn.Parameter(torch.tensor([math.log(1 / 0.07)]))
        self.register_load_state_dict_pre_hook(_read_scale)

    def encode_text(self, text: Tensor) -> Tensor:
        """Text tokens [B, T], negative past their end, to unit vectors [B, D]."""
        return F.normalize(self.text_out(self.text(text)).float(), dim=-1)

    def encode_images(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to unit vectors [B, D]."""
        return F.normalize(self.image_out(self.image(images)).float(), dim=-1)

    @property
    def scale(self) -> Tensor:
        """What cosines are multiplied with before the softmax: one over the temperature."""
        return self.log_scale.clamp(max=math.log(MOST_SCALE)).exp().squeeze()


def _read_scale(network: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """The scale was a number in earlier checkpoints."""
    if f"{prefix}log_scale" in state:
        state[f"{prefix}log_scale"] = state[f"{prefix}log_scale"].reshape(1)


def contrastive_loss(
    text: Tensor, images: Tensor, scale: Tensor, wrong_images: Tensor | None = None
) -> Tensor:
    """Symmetric cross-entropy of finding each one's partner among B (CLIP's loss), in nats.

    Args:
        text, images: unit vectors [B, D], row by row a pair.
        scale: factor before the softmax.
        wrong_images: vectors [M, D] of further images, none of which is any caption's own.
    """
    partner = torch.arange(len(text), device=text.device)
    all_images = images if wrong_images is None else torch.cat([images, wrong_images])
    of_text = F.cross_entropy(scale * text @ all_images.T, partner)
    return (of_text + F.cross_entropy(scale * images @ text.T, partner)) / 2


def patchwork(images: Tensor) -> Tensor:
    """Images [B, 3, H, W] with a rectangle each of the next one, or of another place of their own.

    A prior's bad candidates are of these kinds: every part is fine and the whole is not, often in
    one and the same color.
    """
    batch, _, height, width = images.shape

    def random(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, device=images.device)

    def covered(side: int) -> Tensor:
        """Between two random places: [B, side]."""
        ends = random(2).sort(dim=1).values * side
        at = torch.arange(side, device=images.device) + 0.5
        return (ends[:, :1] <= at) & (at < ends[:, 1:])

    def moved(side: int) -> Tensor:
        """Where each pixel comes from, up to a quarter of the picture away: [B, side]."""
        by = ((random(1) - 0.5) * side / 2).round().long()
        return (torch.arange(side, device=images.device) + by) % side

    rectangle = covered(height)[:, None, :, None] & covered(width)[:, None, None, :]
    rows, columns = moved(height)[:, None, :, None], moved(width)[:, None, None, :]
    own = images.gather(2, rows.expand_as(images)).gather(3, columns.expand_as(images))
    others = torch.where(random(1, 1, 1) < 0.5, own, images.roll(1, dims=0))
    return torch.where(rectangle, others, images)


def _blocks(dim: int, depth: int, heads: int) -> nn.TransformerEncoder:
    block = nn.TransformerEncoderLayer(
        dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    encoder = nn.TransformerEncoder(block, depth, nn.LayerNorm(dim), enable_nested_tensor=False)
    for parameter in encoder.parameters():  # PyTorch's are copies of one block
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.02)
    return encoder
