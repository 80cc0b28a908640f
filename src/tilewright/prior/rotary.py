"""Two-dimensional rotary position embedding (Su et al. 2021) for the stream."""

import torch
from torch import Tensor, nn

from tilewright.prior.stream import BaseStream


class Rotary(nn.Module):
    """Rotates queries and keys by position, so that their product depends on the distance.

    Args:
        angles: [L, D / 2], angles of each position, of a head with D channels. Channels i and
            i + D / 2 rotate as a pair. On the CPU even if the network is built on meta:
            `initialize` does not fill tables.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, angles: Tensor):
        super().__init__()
        cos, sin = angles.cos(), angles.sin()
        self.register_buffer("cos", torch.cat([cos, cos], dim=1), persistent=False)
        self.register_buffer("sin", torch.cat([-sin, sin], dim=1), persistent=False)

    def forward(self, x: Tensor, positions: slice | int | Tensor = slice(None)) -> Tensor:
        """Rotates queries or keys.

        Args:
            x: [..., n, D] for n positions, or [..., D] for one.
            positions: stream positions of x.
        """
        y = x.float()
        partner = y.roll(y.shape[-1] // 2, dims=-1)
        return torch.addcmul(y * self.cos[positions], partner, self.sin[positions]).to(x.dtype)


def stream_angles(stream: BaseStream, width: int, base: float = 100.0) -> Tensor:
    """Returns the angles [L, D / 2] of a stream.

    A text token has the same number as row and column. The image's rows and columns continue from
    the text's end.

    Args:
        stream: token layout.
        width: D, channels of a head, a multiple of 4.
        base: the slowest channel has a period of about 2 pi * base positions.

    Raises:
        ValueError: width is not a multiple of 4.
    """
    first, side = stream.first_image_position, stream.grid
    positions = torch.arange(stream.length, device="cpu")
    text, image = positions[:first], positions[: stream.length - first]
    rows = torch.cat([text, first + image // side])
    columns = torch.cat([text, first + image % side])
    return grid_angles(
        rows, columns, width, base ** -torch.linspace(0, 1, width // 4, device="cpu")
    )


def grid_angles(rows: Tensor, columns: Tensor, width: int, frequencies: Tensor) -> Tensor:
    """Returns angles [L, D / 2], of which one half depends on the row and the other on the column.

    Args:
        rows, columns: numbers [L] of each position.
        width: D, channels of a head, a multiple of 4.
        frequencies: [D / 4].

    Raises:
        ValueError: width is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(
            f"rotary positions need heads of a multiple of 4 channels, got {width}: "
            "change dim or heads"
        )
    return (torch.stack([rows, columns], dim=1)[:, :, None] * frequencies).flatten(1)
