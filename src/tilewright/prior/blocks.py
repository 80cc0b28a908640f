"""The transformer's blocks: the paper's parts, and the modern ones that may take their places."""

from torch import Tensor, nn
from torch.nn import functional as F

from tilewright.prior.attention import LayerCache, Mask, SelfAttention
from tilewright.prior.norms import NORMS


class SwiGLU(nn.Module):
    """A gated network (Shazeer 2020) with as many parameters as a GELU network 4 times as wide."""

    def __init__(self, dim: int):
        super().__init__()
        hidden = round(dim * 8 / 3 / 8) * 8
        self.gate_and_up = nn.Linear(dim, 2 * hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_and_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class GELUNetwork(nn.Module):
    """The paper's: four times wider, with a GELU."""

    def __init__(self, dim: int):
        super().__init__()
        self.up = nn.Linear(dim, 4 * dim)
        self.down = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


MLPS: dict[str, type[nn.Module]] = {"gelu": GELUNetwork, "swiglu": SwiGLU}


class Block(nn.Module):
    """Pre-norm attention and a network on each position, each on a residual path."""

    def __init__(self, dim: int, norm: str, mlp: str, attention: SelfAttention):
        super().__init__()
        self.norm_attention = NORMS[norm](dim)
        self.attention = attention
        self.norm_mlp = NORMS[norm](dim)
        self.mlp = MLPS[mlp](dim)

    @property
    def last_layers(self) -> tuple[nn.Module, nn.Module]:
        """The layers whose outputs are added to the residual path."""
        return self.attention.out, self.mlp.down  # type: ignore[return-value]

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        x = x + self.attention(self.norm_attention(x), mask)
        return x + self.mlp(self.norm_mlp(x))

    def prefill(self, x: Tensor, candidates: int) -> tuple[Tensor, LayerCache]:
        y, cache = self.attention.prefill(self.norm_attention(x), candidates)
        x = x + y
        return x + self.mlp(self.norm_mlp(x)), cache

    def step(self, x: Tensor, token: int | Tensor, cache: LayerCache) -> Tensor:
        x = x + self.attention.step(self.norm_attention(x), token, cache)
        return x + self.mlp(self.norm_mlp(x))
