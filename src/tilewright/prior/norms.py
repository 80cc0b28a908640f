"""Norms of the prior, by name.

Both compute in fp32, as autocast does for LayerNorm on CUDA. States may be bf16, and so may weights
that FSDP has gathered; PyTorch's own norms do not mix dtypes.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm`, computed in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        gain, bias = _fp32(self.weight), _fp32(self.bias)
        return F.layer_norm(_fp32(x), self.normalized_shape, gain, bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """`torch.nn.RMSNorm`, computed in fp32."""

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(_fp32(x), self.normalized_shape, _fp32(self.weight), self.eps)


def _fp32(x: Tensor) -> Tensor:
    return x.float() if x.element_size() < 4 else x


NORMS: dict[str, type[nn.Module]] = {"layer": LayerNorm, "rms": RMSNorm}
