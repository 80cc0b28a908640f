"""The norms that a prior may have, by name."""

from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """RMSNorm in fp32, as autocast runs LayerNorm: by itself it mixes bf16 with fp32 weights."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float() if x.element_size() < 4 else x)


NORMS: dict[str, type[nn.Module]] = {"layer": nn.LayerNorm, "rms": RMSNorm}
