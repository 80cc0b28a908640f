"""Networks with lighter weights to draw from: a step reads them all for a few products each."""

import copy
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tilewright.errors import UserError
from tilewright.prior.transformer import Transformer

Weights = Literal["float32", "bfloat16", "int8"]
WEIGHTS: tuple[str, ...] = get_args(Weights)


class BFloat16Linear(nn.Module):
    """A linear layer that multiplies in bf16, among states in fp32."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.register_buffer("weight", layer.weight.detach().bfloat16())
        self.register_buffer("bias", layer.bias.detach().bfloat16())

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x.bfloat16(), self.weight, self.bias)
        # What stays in bf16 keeps the cache small; but a CPU attends faster in fp32, one query at
        # a time (docs/speed.md).
        return y if y.is_cuda else y.float()


class Int8Linear(nn.Module):
    """A linear layer that multiplies 8-bit numbers exactly, among states in fp32.

    Each output's weights share a scale, and so does each row of states, whatever stands in the
    others: a picture does not depend on those that are drawn beside it.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Linear):
        super().__init__()
        weight = layer.weight.detach()
        scale = weight.abs().amax(dim=1).clamp(min=torch.finfo(weight.dtype).tiny) / 127
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale / 127)
        self.register_buffer("bias", layer.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        # Of the norm of infinity torch makes a loop that is 15 times as slow.
        largest = rows.abs().amax(dim=1, keepdim=True).clamp_(min=1e-30)
        rounded = torch.mul(rows, 127 / largest).round_().to(torch.int8)
        y = torch._int_mm(rounded, self.weight.t()).float()
        return y.mul_(self.scale).mul_(largest).add_(self.bias).view(*x.shape[:-1], -1)


def lightened(network: Transformer, weights: Weights) -> Transformer:
    """A network that draws nearly the same from linear layers in another number format.

    Embeddings, norms, softmaxes and the residual path stay as they are.

    Args:
        weights: "float32" is the network itself; "int8" is for a CPU.

    Raises:
        UserError: int8 on another device.
    """
    layers = [name for name, layer in network.named_modules() if type(layer) is nn.Linear]
    if weights == "float32" or not layers:  # or it is light already
        return network
    device = network.image_embedding.weight.device.type
    if weights == "int8" and device != "cpu":
        raise UserError(f"weights=int8 is for a CPU; on {device} take weights=bfloat16")
    kind = BFloat16Linear if weights == "bfloat16" else Int8Linear
    network = copy.deepcopy(network)
    for name in layers:
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        network.set_submodule(name, kind(layer))
    return network
