"""Time and cache memory per image as the grid grows, by attention pattern.

Target: with row or column attention, the cost grows no faster than the number of image tokens. Time
is measured in turns. The cache is counted from its plan, at these sizes and at the paper's.

    python benchmarks/sampling_cost.py [grids=[8,16,32]] [batch_size=4] [any setting=value]
"""

from functools import partial
from itertools import product
from typing import Any

import numpy as np
import priors
import settings as command_line
import timing
from omegaconf import DictConfig, OmegaConf

from tilewright.prior import Stream, sample
from tilewright.prior.patterns import cache_slots, layer_patterns

DEFAULTS = {
    **{name: size for name, size in priors.SHAPE.items() if name != "grid"},
    "grids": [8, 16, 32],
    "patterns": ["row", "column", "paper", "full"],
    "batch_size": 4,  # captions, one image each
    "rounds": 3,
    "warmup": 1,
    "threads": None,  # null: torch's default
    "out": "logs/benchmarks/sampling_cost.json",
}
LINEAR = ("row", "column")
PAPER: dict[str, Any] = {"dim": 3968, "depth": 64, "stream": Stream()}
SEED = 0


def cache_bytes(pattern: str, stream: Stream, dim: int, depth: int, value_size: int) -> int:
    """Returns the bytes of the image keys and values that are held for one image."""
    slots = sum(cache_slots(name, stream).count for name in layer_patterns(pattern, depth))
    return slots * 2 * dim * value_size


def text_bytes(stream: Stream, dim: int, depth: int, value_size: int) -> int:
    """Returns the bytes of the keys and values of start and text, shared by a caption's images."""
    return stream.first_image_position * depth * 2 * dim * value_size


def keys_read(pattern: str, stream: Stream, depth: int) -> float:
    """Returns the average number of keys that a token sees in a layer, text included."""
    patterns = layer_patterns(pattern, depth)
    read = [cache_slots(name, stream).reads_per_token for name in patterns]
    return stream.first_image_position + float(np.mean(read))


def measure(settings: DictConfig, device: str) -> list[dict[str, Any]]:
    """Measures each pattern on each grid: seconds of all rounds, and growth from the first grid."""
    steps, shapes = {}, {}
    for pattern, grid in product(settings.patterns, settings.grids):
        shape = shapes[grid] = OmegaConf.create({**settings, "grid": grid})
        network = priors.ours(shape, device, pattern).network.eval()
        text, _ = priors.random_pairs(shape, settings.batch_size, device)
        steps[f"{pattern}, {grid}x{grid}"] = partial(sample, network, text)
    speeds = timing.compare(steps, settings.rounds, settings.warmup)
    seconds_per_token = {
        case: np.array(speed.seconds) / settings.batch_size / case[1] ** 2
        for case, speed in zip(product(settings.patterns, settings.grids), speeds, strict=True)
    }
    results = []
    for (pattern, grid), seconds in seconds_per_token.items():
        growth = seconds / seconds_per_token[pattern, settings.grids[0]]
        low, middle, high = np.quantile(growth, [0.25, 0.5, 0.75]).tolist()
        stream, depth = priors.stream_of(shapes[grid]), settings.depth
        results.append(
            {
                "pattern": pattern,
                "grid": grid,
                "seconds_a_picture": (seconds * grid**2).tolist(),
                "cost_of_a_token": middle,
                "quartiles": [low, high],
                "keys_read": keys_read(pattern, stream, depth),
                "cache_bytes": cache_bytes(pattern, stream, settings.dim, depth, 4),
            }
        )
    return results


def cache_at_paper_size() -> list[dict[str, Any]]:
    """Returns the cache of a candidate in fp16 by pattern, and that of a dense cache."""
    stream, sizes = PAPER["stream"], (PAPER["dim"], PAPER["depth"], 2)
    text = text_bytes(stream, *sizes)
    dense = text + cache_bytes("full", stream, *sizes)
    rows = [{"cache": "dense, text and image per candidate", "bytes": dense, "shared": 0}]
    for pattern in ("row", "column", "convolutional", "paper", "full"):
        bytes_per_candidate = cache_bytes(pattern, stream, *sizes)
        rows.append({"cache": f"ours, {pattern}", "bytes": bytes_per_candidate, "shared": text})
    for row in rows:
        row["of_64_candidates"] = row["shared"] + 64 * row["bytes"]
    return rows


def main() -> None:
    settings = command_line.parse(DEFAULTS, __doc__)
    device = timing.prepare(settings.threads, SEED)

    paper = cache_at_paper_size()
    names = ("bytes", "shared", "of_64_candidates")
    rows = [[row["cache"], *(f"{row[name] / 2**20:,.0f}" for name in names)] for row in paper]
    timing.print_table(
        "Cache at the paper's size in fp16, MiB, counted",
        ["cache", "per candidate", "shared per caption", "64 candidates of a caption"],
        rows,
    )
    results = measure(settings, device)
    rows = [
        [
            f"{row['pattern']}, {row['grid']}x{row['grid']}",
            f"{np.median(row['seconds_a_picture']):.3f}",
            f"{row['cost_of_a_token']:.2f}",
            f"{row['quartiles'][0]:.2f} to {row['quartiles'][1]:.2f}",
            f"{row['keys_read']:.0f}",
            f"{row['cache_bytes'] / 2**10:,.0f}",
        ]
        for row in results
    ]
    first, last = settings.grids[0], settings.grids[-1]
    timing.print_table(
        f"An image's cost, {settings.batch_size} sampled at once",
        ["pattern, grid", "seconds", "per token", "quartiles", "keys read", "cache KiB"],
        rows,
        f"per token: time relative to {first}x{first}; 1 or less is linear. "
        f"keys read: per token and layer, text included. {settings.rounds} rounds",
    )
    for row in results:
        if row["pattern"] in LINEAR and row["grid"] == last:
            growth = row["cost_of_a_token"]
            verdict = "no faster than linear" if growth <= 1 else "faster than linear"
            print(f"{row['pattern']}, {first}x{first} to {last}x{last}: {growth:.2f}, {verdict}")
    timing.write(
        settings.out, results=results, paper=paper, settings=OmegaConf.to_container(settings)
    )


if __name__ == "__main__":
    main()
