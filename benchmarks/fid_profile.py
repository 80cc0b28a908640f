"""Profile of `eval metric=fid` after the images are generated, with the offline extractor.

Target: at least 80 % of the time is the extractor's forward pass, for 2,000 images of 64x64. The
rest is writing and reading PNGs, the resize, and the distance. The matrix root of the distance
takes the same time for any number of images.

    python benchmarks/fid_profile.py [images=2000] [any setting=value]
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import settings as command_line
import timing
import torch
from omegaconf import OmegaConf

from tilewright.evaluations.features import write_image_folder
from tilewright.metrics.distances import frechet_distance
from tilewright.metrics.extractors import load_efficientnet
from tilewright.metrics.features import folder_features

DEFAULTS = {
    "images": 2000,  # number of real images, and of generated ones
    "size": 64,
    "target": 0.8,
    "threads": None,  # null: torch's default
    "out": "logs/benchmarks/fid_profile.json",
}
SEED = 0


class Stopwatch:
    """Total seconds of timed calls, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        value = call(*arguments)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - start
        return value


def profile(images: int, size: int, device: str) -> dict[str, float]:
    """Times each part of the metric on random images."""
    watch = Stopwatch()
    extractor = load_efficientnet("efficientnet_lite0", device)
    network = extractor.network
    network(torch.rand(32, 3, extractor.size, extractor.size, device=device))  # warm-up
    watched = replace(extractor, network=lambda x: watch("forward pass", network, x))
    features = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("real", "generated"):
            noise = torch.rand(images, 3, size, size)
            path = watch("writing PNGs", write_image_folder, noise, Path(folder) / name)
            features.append(watch("features", folder_features, path, watched))
    watch("distance", frechet_distance, *features)
    seconds = watch.seconds
    seconds["reading and resize"] = seconds.pop("features") - seconds["forward pass"]
    return seconds


def main() -> None:
    settings = command_line.parse(DEFAULTS, __doc__)
    device = timing.prepare(settings.threads, SEED)
    seconds = profile(settings.images, settings.size, device)
    total = sum(seconds.values())
    shares = {name: value / total for name, value in seconds.items()}
    timing.print_table(
        f"Fréchet distance, 2 x {settings.images} images of {settings.size}x{settings.size}",
        ["part", "seconds", "share"],
        [[name, f"{seconds[name]:.2f}", f"{share:.3f}"] for name, share in shares.items()],
    )
    share = shares["forward pass"]
    verdict = "reached" if share >= settings.target else "missed"
    print(f"forward pass: {share:.3f} of the time, target {settings.target}: {verdict}")
    timing.write(
        settings.out, seconds=seconds, shares=shares, settings=OmegaConf.to_container(settings)
    )


if __name__ == "__main__":
    main()
