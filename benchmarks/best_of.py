"""Time and cache memory of many candidates of one caption, with the paper's grid and patterns.

The baseline samples one image for each of as many captions with dense attention, so each image has
its own keys and values of text and image. Ours shares the caption's keys among the candidates and
keeps only the image keys that a later query sees. Targets: 0.27 of the cache memory per candidate
in the same dtype, and a third of the time.

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

from tilewright.prior import Prior, Sampling, sample, with_low_precision_weights

DEFAULTS = {
    "candidates": 64,
    "grid": 32,
    "text_length": 256,
    "dim": 128,  # narrow, to save time; the memory ratio is the same for any width
    "depth": 8,
    "heads": 4,
    "text_vocab": 512,
    "image_vocab": 512,
    "weights": "float32",
    "compile": False,  # one compiled step on both sides
    "rounds": 2,
    "warmup": 0,
    "targets": {"memory": 0.27, "time": 1 / 3},
    "threads": None,  # null: torch's default
    "out": "logs/benchmarks/best_of.json",
}
OURS = "ours, candidates of one caption"
DENSE = "dense, one caption each"
SEED = 0


@torch.inference_mode()
def cache_bytes(network: Prior, text: Tensor, candidates: int) -> int:
    """Returns the bytes of the KV cache per image."""
    _, caches = network.prefill(text, candidates)
    return sum(cache.nbytes for cache in caches) // (len(text) * candidates)


def measure(settings: DictConfig, device: str) -> dict[str, Any]:
    """Measures the speeds and the bytes of a candidate's cache."""
    count = settings.candidates
    text, _ = priors.random_pairs(settings, count, device)
    tasks = {
        DENSE: (priors.ours(settings, device, "full").network, text, 1),
        OURS: (priors.ours(settings, device, "paper").network, text[:1], count),
    }
    steps, cache_sizes = {}, {}
    for name, (network, captions, candidates) in tasks.items():
        network = with_low_precision_weights(network.eval(), settings.weights)
        sampling = Sampling(compile=settings.compile)
        steps[name] = partial(sample, network, captions, candidates, sampling=sampling)
        cache_sizes[name] = cache_bytes(network, captions, candidates)
    speeds = timing.compare(steps, settings.rounds, settings.warmup)
    return {"speeds": speeds, "cache_bytes": cache_sizes}


def main() -> None:
    settings = command_line.parse(DEFAULTS, __doc__)
    device = timing.prepare(settings.threads, SEED)
    results = measure(settings, device)
    speeds, cache_sizes = results["speeds"], results["cache_bytes"]
    timing.print_speeds(f"{settings.candidates} images: against dense attention", speeds)
    shares = {
        "memory": cache_sizes[OURS] / cache_sizes[DENSE],
        "time": 1 / next(speed.ratio for speed in speeds if speed.name == OURS),
    }
    ours, dense = (cache_sizes[name] / 2**20 for name in (OURS, DENSE))
    print(f"cache of a candidate: {ours:.2f} MiB, dense {dense:.2f} MiB")
    for name, share in shares.items():
        verdict = "reached" if share <= settings.targets[name] else "missed"
        print(f"{name}: {share:.3f} of dense, target {settings.targets[name]:.3f}: {verdict}")
    timing.write(settings.out, **results, shares=shares, settings=OmegaConf.to_container(settings))


if __name__ == "__main__":
    main()
