"""Layers that keep fp32 in mixed precision."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Float32Linear(nn.Linear):
    """Linear layer that computes in fp32, also under autocast.

    It is for output heads, because bf16 rounds away differences of logits below a hundredth.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return F.linear(x.float(), self.weight.float(), bias)
