"""Layers of `VQGAN`'s encoder and decoder.

A decoder's layers also get the codes, on which the normalizations of MoVQ depend.
"""

from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-6  # of every normalization


class Norm(nn.GroupNorm):
    """Group normalization. A decoder gives it the codes, which it ignores."""

    def __init__(self, width: int, groups: int):
        super().__init__(groups, width, EPSILON)

    def forward(self, x: Tensor, codes: Tensor | None = None) -> Tensor:
        return super().forward(x)


class SpatialNorm(nn.Module):
    """Normalization whose scale and shift at each position depend on its code (MoVQ)."""

    def __init__(self, width: int, groups: int, code_dim: int):
        super().__init__()
        self.norm = Norm(width, groups)
        self.scale = nn.Conv2d(code_dim, width, 1)
        self.shift = nn.Conv2d(code_dim, width, 1)

    def forward(self, x: Tensor, codes: Tensor) -> Tensor:
        codes = F.interpolate(codes, x.shape[-2:], mode="nearest")
        return self.norm(x) * self.scale(codes) + self.shift(codes)


class NormFactory:
    """Normalizations of an encoder or a decoder, which depend on the width only."""

    def __init__(self, groups: int, code_dim: int | None = None):
        self.groups = groups
        self.code_dim = code_dim

    def __call__(self, width: int) -> nn.Module:
        if self.code_dim is None:
            return Norm(width, self.groups)
        return SpatialNorm(width, self.groups, self.code_dim)


class ResidualBlock(nn.Module):
    """Two normalized convolutions on a shortcut: [B, n_in, H, W] to [B, n_out, H, W]."""

    def __init__(self, n_in: int, n_out: int, norm: NormFactory):
        super().__init__()
        self.norm1 = norm(n_in)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.norm2 = norm(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        self.shortcut = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)

    def forward(self, x: Tensor, codes: Tensor | None) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x, codes)))
        hidden = self.conv2(F.silu(self.norm2(hidden, codes)))
        return self.shortcut(x) + hidden


class Attention(nn.Module):
    """Attention with one head among all positions of [B, width, H, W]."""

    def __init__(self, width: int, norm: NormFactory):
        super().__init__()
        self.norm = norm(width)
        self.query, self.key, self.value, self.out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor, codes: Tensor | None) -> Tensor:
        normed = self.norm(x, codes)
        query, key, value = (
            layer(normed).flatten(2).transpose(1, 2)[:, None]
            for layer in (self.query, self.key, self.value)
        )
        hidden = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(hidden[:, 0].transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Convolution that halves height and width. It pads at the right and the bottom only."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor, codes: Tensor | None) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbor upsampling to twice the height and width, and a convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, codes: Tensor | None) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Blocks of one resolution, each followed by attention if the level has it.

    Args:
        n_in, n_out: widths of input and output.
        blocks: number of residual blocks.
        norm: builds the normalizations.
        has_attention: use attention.
        resize: the layer at the end.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        blocks: int,
        norm: NormFactory,
        has_attention: bool,
        resize: nn.Module | None,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(n_out if index else n_in, n_out, norm) for index in range(blocks)
        )
        self.attention = nn.ModuleList(
            Attention(n_out, norm) for _ in range(blocks if has_attention else 0)
        )
        self.resize = resize

    def forward(self, x: Tensor, codes: Tensor | None) -> Tensor:
        for index, block in enumerate(self.blocks):
            x = block(x, codes)
            if len(self.attention):
                x = self.attention[index](x, codes)
        return x if self.resize is None else self.resize(x, codes)


class Middle(nn.Module):
    """Two residual blocks, and possibly attention between them, at the grid's resolution."""

    def __init__(self, width: int, norm: NormFactory, has_attention: bool):
        super().__init__()
        self.block1 = ResidualBlock(width, width, norm)
        self.attention = Attention(width, norm) if has_attention else None
        self.block2 = ResidualBlock(width, width, norm)

    def forward(self, x: Tensor, codes: Tensor | None) -> Tensor:
        x = self.block1(x, codes)
        if self.attention is not None:
            x = self.attention(x, codes)
        return self.block2(x, codes)
