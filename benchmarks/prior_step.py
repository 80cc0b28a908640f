"""Speed of one training step of a prior, against other transformers of equal shape.

A step is forward, loss, backward and AdamW (each project's own if it has one), with random tokens
and weights. DALLE-pytorch's sparse attention is its (axial_row, axial_col, conv_like). The peers
have one vocabulary for text and image tokens; ours has one output head for each.

    python benchmarks/prior_step.py [batch_size=16] [compile=true] [any setting=value]
"""

from collections.abc import Callable, Iterator
from functools import partial

import peers
import priors
import settings as command_line
import timing
from omegaconf import DictConfig, OmegaConf

DEFAULTS = {
    **priors.SHAPE,
    "batch_size": 16,
    "rounds": 20,
    "warmup": 3,
    "threads": None,  # null: torch's default
    "bf16": True,  # also measures autocast to bf16
    "compile": False,  # true: also measures ours compiled, and with modern parts
    "out": "logs/benchmarks/prior_step.json",
}
MODERN = {"norm": "rms", "mlp": "swiglu", "positions": "rotary", "qk_norm": True}
SEED = 0


def our_priors(
    settings: DictConfig, device: str
) -> Iterator[tuple[str, Callable[[], priors.Prior]]]:
    """Yields our priors by name, the paper's patterns first."""
    paper = partial(priors.ours, settings, device, "paper")
    yield "ours, paper's patterns", paper
    yield "ours, full attention", partial(priors.ours, settings, device, "full")
    if settings.compile:
        yield "ours, paper's patterns, compiled", partial(paper, compiled=True)
        yield "modern parts", partial(paper, **MODERN)
        yield "modern parts, compiled", partial(paper, compiled=True, **MODERN)


def peer_priors(shape: DictConfig, device: str) -> Iterator[tuple[str, Callable[[], priors.Prior]]]:
    """Yields the installed peers by name."""
    dalle = peers.load("dalle_pytorch")
    if dalle is not None:
        make = partial(priors.dalle_pytorch, dalle, shape, device)
        yield "DALLE-pytorch, full", make
        yield "DALLE-pytorch, sparse", partial(make, priors.DALLE_SPARSE)
    transformers = peers.load("transformers")
    if transformers is not None:
        yield "transformers, GPT-2", partial(priors.gpt2, transformers, shape, device)
    x_transformers = peers.load("x_transformers")
    if x_transformers is not None:
        yield "x-transformers", partial(priors.x_transformers, x_transformers, shape, device)


def main() -> None:
    settings = command_line.parse(DEFAULTS, __doc__)
    device = timing.prepare(settings.threads, SEED)
    pairs = priors.random_pairs(settings, settings.batch_size, device)
    peer_makers = dict(peer_priors(settings, device))
    makers = dict(our_priors(settings, device)) | peer_makers
    speeds = {}
    for precision in ("fp32", "bf16") if settings.bf16 else ("fp32",):
        steps = {
            name: priors.training_step(make(), *pairs, bf16=precision == "bf16")
            for name, make in makers.items()
        }
        speeds[precision] = timing.compare(steps, settings.rounds, settings.warmup)
        title = f"A training step, {precision}"
        timing.print_against_peers(title, speeds[precision], peer_makers)
    timing.write(settings.out, speeds=speeds, settings=OmegaConf.to_container(settings))


if __name__ == "__main__":
    main()
