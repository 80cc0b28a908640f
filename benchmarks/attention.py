"""Speed of attention over the complete stream, forward and backward, by pattern.

The baseline is PyTorch's dense causal attention, as in a prior without sparse layers. A dense mask
is the other way to compute a sparse pattern; it costs the same for every pattern.

    python benchmarks/attention.py [grid=32] [text_length=256] [batch_size=2] [any setting=value]
"""

from collections.abc import Callable
from functools import partial

import settings as command_line
import timing
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional as F

from tilewright.prior import Stream
from tilewright.prior.attention import attend, attention_mask
from tilewright.prior.patterns import PATTERNS, dense_mask

DEFAULTS = {
    "text_length": 256,
    "grid": 32,
    "heads": 8,
    "width": 64,  # per head
    "batch_size": 2,
    "dtypes": ["float32", "bfloat16"],
    "rounds": 10,
    "warmup": 2,
    "threads": None,  # null: torch's default
    "out": "logs/benchmarks/attention.json",
}
SEED = 0


def forward_and_backward(attention: Callable[..., Tensor], qkv: list[Tensor]) -> None:
    """Runs attention forward and backward."""
    y = attention(*qkv)
    torch.autograd.grad(y, qkv, torch.ones_like(y))


def main() -> None:
    settings = command_line.parse(DEFAULTS, __doc__)
    device = timing.prepare(settings.threads, SEED)
    stream = Stream(text_length=settings.text_length, grid=settings.grid)
    mask = dense_mask("row", stream).to(device)
    dense = {
        "dense, causal": partial(F.scaled_dot_product_attention, is_causal=True),
        "dense mask": partial(F.scaled_dot_product_attention, attn_mask=mask),
    }
    shape = (settings.batch_size, settings.heads, stream.length, settings.width)
    speeds = {}
    for name in settings.dtypes:
        dtype = getattr(torch, name)
        qkv = [torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for _ in "qkv"]
        ours = {
            f"ours, {name}": partial(
                attend, mask=attention_mask(name, stream, torch.device(device), dtype)
            )
            for name in PATTERNS
        }
        implementations = {**dense, **ours}
        steps = {
            label: partial(forward_and_backward, implementation, qkv)
            for label, implementation in implementations.items()
        }
        speeds[name] = timing.compare(steps, settings.rounds, settings.warmup)
        title = f"Attention, {stream.length} positions, {name}"
        timing.print_speeds(f"{title}: against dense, causal", speeds[name])
        under_mask = timing.against(speeds[name], "dense mask")
        timing.print_speeds(f"{title}: against a dense mask", under_mask)
    timing.write(settings.out, speeds=speeds, settings=OmegaConf.to_container(settings))


if __name__ == "__main__":
    main()
