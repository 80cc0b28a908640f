"""The norms that a prior may have, by name.

Both compute in fp32, as autocast runs LayerNorm on CUDA; by themselves they mix no types, or badly,
and states, or gains that were gathered from shards, may be bf16.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        gain, bias = _fp32(self.weight), _fp32(self.bias)
        return F.layer_norm(_fp32(x), self.normalized_shape, gain, bias, self.eps)


class RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(_fp32(x), self.normalized_shape, _fp32(self.weight), self.eps)


def _fp32(x: Tensor) -> Tensor:
    return x.float() if x.element_size() < 4 else x


NORMS: dict[str, type[nn.Module]] = {"layer": LayerNorm, "rms": RMSNorm}
