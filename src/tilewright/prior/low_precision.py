"""Networks with bf16 or int8 weights for sampling, where reading the weights dominates a step."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilewright.errors import UserError
from tilewright.prior.protocol import Prior
from tilewright.training.adapters import without_adapters

Weights = Literal["float32", "bfloat16", "int8"]
WEIGHTS: tuple[str, ...] = get_args(Weights)


class BFloat16Linear(nn.Module):
    """Linear layer that multiplies in bf16, for fp32 states."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.register_buffer("weight", layer.weight.detach().bfloat16())
        bias = None if layer.bias is None else layer.bias.detach().bfloat16()
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x.bfloat16(), self.weight, self.bias)
        # bf16 outputs keep the KV cache small, but single queries attend faster in fp32 on a CPU.
        return y if y.is_cuda else y.float()


class Int8Linear(nn.Module):
    """Linear layer that multiplies int8 numbers exactly, for fp32 states on a CPU.

    Each output channel has its own weight scale. Each row of states has its own scale too, so that
    an image does not depend on the rest of the batch.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear):
        super().__init__()
        weight = layer.weight.detach()
        scale = weight.abs().amax(dim=1).clamp(min=torch.finfo(weight.dtype).tiny) / 127
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale / 127)
        bias = None if layer.bias is None else layer.bias.detach().clone()
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        # An infinity norm would do the same 15 times slower.
        largest = rows.abs().amax(dim=1, keepdim=True).clamp_(min=1e-30)
        rounded = torch.mul(rows, 127 / largest).round_().to(torch.int8)
        y = torch._int_mm(rounded, self.weight.t()).float()
        y.mul_(self.scale).mul_(largest)
        if self.bias is not None:
            y.add_(self.bias)
        return y.view(*x.shape[:-1], -1)


def with_low_precision_weights(network: Prior, weights: Weights) -> Prior:
    """Returns a copy of a network whose linear layers have weights of another dtype.

    Embeddings, norms, heads, softmaxes and the residual path keep their dtype. The copy samples
    nearly the same images. It shares all other weights with the network.

    Args:
        network: trained prior. It is not changed.
        weights: "float32" returns the network itself. "int8" works on a CPU only.

    Raises:
        UserError: int8 on another device than the CPU.
    """
    is_converted = not any(type(layer) is nn.Linear for layer in network.modules())
    if weights == "float32" or is_converted:
        return network
    device = next(network.parameters()).device.type
    if weights == "int8" and device != "cpu":
        raise UserError(f"weights=int8 needs a CPU, not {device}: set weights=bfloat16")
    layer_type = BFloat16Linear if weights == "bfloat16" else Int8Linear
    return _convert(network, layer_type)


def _convert(module: Any, layer_type: Callable[[nn.Linear], nn.Module]) -> Any:
    """Returns a copy of a module with converted linear layers and the same other weights."""
    module = without_adapters(module)
    if type(module) is nn.Linear:
        return layer_type(module)
    converted = object.__new__(type(module))  # copy.copy would call the constructor under FSDP2
    parts = {name: part and _convert(part, layer_type) for name, part in module._modules.items()}
    converted.__dict__ = {**module.__getstate__(), "_modules": parts}
    return converted
