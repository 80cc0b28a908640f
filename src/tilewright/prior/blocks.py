"""Transformer blocks, with the paper's parts or their modern replacements."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from tilewright.prior.attention import Mask, SelfAttention
from tilewright.prior.kv_cache import LayerCache


class SwiGLU(nn.Module):
    """Gated network (Shazeer 2020).

    Args:
        dim: width of the states.
        hidden: width between the layers. None has about as many parameters as a GELU network.
        bias: add biases.
    """

    def __init__(self, dim: int, hidden: int | None = None, bias: bool = True):
        super().__init__()
        hidden = hidden or round(dim * 8 / 3 / 8) * 8
        self.gate_and_up = nn.Linear(dim, 2 * hidden, bias)
        self.down = nn.Linear(hidden, dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_and_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class GELUNetwork(nn.Module):
    """The paper's feed-forward network: four times wider than the states, with a GELU.

    Args:
        dim: width of the states.
        bias: add biases.
    """

    def __init__(self, dim: int, bias: bool = True):
        super().__init__()
        self.up = nn.Linear(dim, 4 * dim, bias)
        self.down = nn.Linear(4 * dim, dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


MLPS: dict[str, type[nn.Module]] = {"gelu": GELUNetwork, "swiglu": SwiGLU}


class Block(nn.Module):
    """Pre-norm attention and a feed-forward network, each in a residual branch.

    `forward` reads the whole stream, `prefill` the text, and `step` one image token. All three must
    compute the same function; a subclass overrides all three or none.

    Args:
        attention: attention layer.
        mlp: feed-forward network, whose last layer is `down`.
        norm: builds a norm.
    """

    def __init__(self, attention: SelfAttention, mlp: nn.Module, norm: Callable[[], nn.Module]):
        super().__init__()
        self.norm_attention = norm()
        self.attention = attention
        self.norm_mlp = norm()
        self.mlp = mlp

    @property
    def last_layers(self) -> tuple[nn.Module, nn.Module]:
        """The layers whose outputs are added to the residual path."""
        return self.attention.out, self.mlp.down  # type: ignore[return-value]

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """Computes the states [B, L, dim] of the whole stream."""
        x = x + self.attention(self.norm_attention(x), mask)
        return x + self.mlp(self.norm_mlp(x))

    def prefill(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the states of the text's positions [C, P, dim], and their keys and values.

        Args:
            mask: booleans [C, 1, P, P], True for visible keys. None is causal.

        Returns:
            States [C, P, dim], keys and values [C, H, P, D].
        """
        y, k, v = self.attention.prefill(self.norm_attention(x), mask)
        x = x + y
        return x + self.mlp(self.norm_mlp(x)), k, v

    def step(self, x: Tensor, index: int | Tensor, cache: LayerCache) -> Tensor:
        """Computes the states [C * n, dim] of the image token `index`, given the cache."""
        x = x + self.attention.step(self.norm_attention(x), index, cache)
        return x + self.mlp(self.norm_mlp(x))
