"""Rotary positions of the stream in two dimensions (Su et al. 2021), for the modern prior."""

import torch
from torch import Tensor, nn

from tilewright.prior.stream import Stream


class Rotary(nn.Module):
    """Turns queries and keys by their positions, so that their product knows the distance.

    Half of a head's channels turn with the row and half with the column. A text token has one and
    the same number for both; the image's rows and columns count on from the text's end.

    Args:
        width: channels of a head, a multiple of 4.
        base: the slowest channel turns once in about 2 pi * base positions.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, stream: Stream, width: int, base: float = 100.0):
        super().__init__()
        if width % 4:
            raise ValueError(
                f"rotary positions need heads of a multiple of 4 channels, got {width}"
            )
        first, side = stream.first_image_position, stream.grid
        # On the CPU also where the network is built on meta: a table has no weights to draw.
        positions = torch.arange(stream.length, device="cpu")
        text, image = positions[:first], positions[: stream.length - first]
        rows = torch.cat([text, first + image // side])
        columns = torch.cat([text, first + image % side])
        speeds = base ** -torch.linspace(0, 1, width // 4, device="cpu")
        angles = torch.stack([rows, columns], dim=1)[:, :, None] * speeds
        angles = angles.flatten(1)  # [L, D / 2]: channel i turns together with i + D / 2
        cos, sin = angles.cos(), angles.sin()
        self.register_buffer("cos", torch.cat([cos, cos], dim=1), persistent=False)
        self.register_buffer("sin", torch.cat([-sin, sin], dim=1), persistent=False)

    def forward(self, x: Tensor, positions: slice | int | Tensor = slice(None)) -> Tensor:
        """Queries or keys [..., n, D] of so many positions, or [..., D] of one, turned."""
        y = x.float()
        other = y.roll(y.shape[-1] // 2, dims=-1)
        return torch.addcmul(y * self.cos[positions], other, self.sin[positions]).to(x.dtype)
