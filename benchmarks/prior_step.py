"""Speed of one training step of a prior, against other transformers of equal shape.

A step is forward, loss, backward and AdamW, each project's own where it has one, on random tokens,
with random weights. DALLE-pytorch's sparse attention is its (axial_row, axial_col, conv_like).
GPT-2 and x-transformers know of one vocabulary, text's and image's together, as DALLE-pytorch does;
ours has a head for each.

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
    "threads": None,  # torch's own choice
    "bf16": True,  # measure autocast to bf16 too
    "compile": False,  # true: measure ours compiled too, and with the parts of the default prior
    "out": "logs/benchmarks/prior_step.json",
}
MODERN = {"norm": "rms", "mlp": "swiglu", "positions": "rotary", "qk_norm": True}
SEED = 0


def of_ours(settings: DictConfig, device: str) -> Iterator[tuple[str, Callable[[], priors.Prior]]]:
    """Ours, the paper's patterns first."""
    paper = partial(priors.ours, settings, device, "paper")
    yield "ours, paper's patterns", paper
    yield "ours, full attention", partial(priors.ours, settings, device, "full")
    if settings.compile:
        yield "the first, compiled", partial(paper, compiled=True)
        yield "modern parts", partial(paper, **MODERN)
        yield "modern parts, compiled", partial(paper, compiled=True, **MODERN)


def of_peers(shape: DictConfig, device: str) -> Iterator[tuple[str, Callable[[], priors.Prior]]]:
    """The peers that are installed."""
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
    settings = command_line.read_own(DEFAULTS, __doc__)
    device = timing.prepare(settings.threads, SEED)
    pairs = priors.random_pairs(settings, settings.batch_size, device)
    rivals = dict(of_peers(settings, device))
    makers = dict(of_ours(settings, device)) | rivals
    speeds = {}
    for precision in ("fp32", "bf16") if settings.bf16 else ("fp32",):
        steps = {
            name: priors.training_step(make(), *pairs, bf16=precision == "bf16")
            for name, make in makers.items()
        }
        speeds[precision] = timing.compare(steps, settings.rounds, settings.warmup)
        title = f"A training step, {precision}"
        timing.show_against_peers(title, speeds[precision], rivals)
    timing.write(settings.out, speeds=speeds, settings=OmegaConf.to_container(settings))


if __name__ == "__main__":
    main()
