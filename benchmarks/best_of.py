"""Drawing many candidates of one caption, at the paper's grid, text and patterns of attention.

The baseline draws as many pictures of as many captions with dense attention, each with keys and
values of text and image of its own. Ours shares the caption's among its candidates and keeps of a
picture what its layers still see. The targets: 0.27 of the memory for a candidate's cache, in the
same number format, and a third of the time. Memory is that of the caches which the sampler makes.

    python benchmarks/best_of.py [candidates=64] [dim=128] [any setting=value]
"""

from functools import partial
from typing import Any

import priors
import settings as command_line
import timing
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from tilewright.prior import Sampling, Transformer, lightened, sample

DEFAULTS = {
    "candidates": 64,
    "grid": 32,
    "text_length": 256,
    "dim": 128,  # narrow, for the sake of time; the memory's ratio is that of any width
    "depth": 8,
    "heads": 4,
    "text_vocab": 512,
    "image_vocab": 512,
    "weights": "float32",
    "compile": False,  # one compiled step on both sides
    "rounds": 2,
    "warmup": 0,
    "targets": {"memory": 0.27, "time": 1 / 3},
    "threads": None,  # torch's own choice
    "out": "logs/benchmarks/best_of.json",
}
OURS = "ours, candidates of one caption"
DENSE = "dense, a caption for each"
SEED = 0


@torch.inference_mode()
def cache_bytes(network: Transformer, text: Tensor, candidates: int) -> int:
    """What the sampler holds of captions and pictures, for each picture."""
    _, caches = network.prefill(text, candidates)
    return sum(cache.nbytes for cache in caches) // (len(text) * candidates)


def measure(settings: DictConfig, device: str) -> dict[str, Any]:
    """Speeds, and bytes of a candidate's cache."""
    count = settings.candidates
    text, _ = priors.random_pairs(settings, count, device)
    tasks = {
        DENSE: (priors.ours(settings, device, "full").network, text, 1),
        OURS: (priors.ours(settings, device, "paper").network, text[:1], count),
    }
    steps, held = {}, {}
    for name, (network, captions, candidates) in tasks.items():
        network = lightened(network.eval(), settings.weights)
        sampling = Sampling(compile=settings.compile)
        steps[name] = partial(sample, network, captions, candidates, sampling=sampling)
        held[name] = cache_bytes(network, captions, candidates)
    speeds = timing.compare(steps, settings.rounds, settings.warmup)
    return {"speeds": speeds, "cache_bytes": held}


def main() -> None:
    settings = command_line.read_own(DEFAULTS, __doc__)
    device = timing.prepare(settings.threads, SEED)
    figures = measure(settings, device)
    speeds, held = figures["speeds"], figures["cache_bytes"]
    timing.show_speeds(f"{settings.candidates} pictures: against dense attention", speeds)
    shares = {
        "memory": held[OURS] / held[DENSE],
        "time": 1 / next(speed.ratio for speed in speeds if speed.name == OURS),
    }
    print(f"cache of a candidate: {held[OURS] / 2**20:.2f} of {held[DENSE] / 2**20:.2f} MiB")
    for name, share in shares.items():
        verdict = "reached" if share <= settings.targets[name] else "missed"
        print(f"{name}: {share:.3f} of dense, target {settings.targets[name]:.3f}: {verdict}")
    timing.write(settings.out, **figures, shares=shares, settings=OmegaConf.to_container(settings))


if __name__ == "__main__":
    main()
