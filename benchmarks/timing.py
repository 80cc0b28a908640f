"""Speed ratios of steps that are timed in turns, and their output as tables and JSON.

Seconds of different runs are not comparable, because they depend on the machine and its load. Two
steps timed one right after the other are. The result is the median of these paired ratios, with
their quartiles.
"""

import json
import platform
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from tilewright.hardware import resolve_precision


@dataclass(frozen=True)
class Speed:
    """Speed of a step as a multiple of the baseline's.

    Args:
        ratio: median over the rounds.
        low: lower quartile.
        high: upper quartile.
        seconds: duration of each round.
    """

    name: str
    ratio: float
    low: float
    high: float
    seconds: list[float]


def compare(
    steps: Mapping[str, Callable[[], Any]], rounds: int = 10, warmup: int = 2
) -> list[Speed]:
    """Times the steps in turns, A B C A B C ...; the first one is the baseline.

    Args:
        steps: steps by name.
        rounds: number of measurements of each step.
        warmup: number of runs of each step beforehand, which compile and allocate.
    """
    for step in steps.values():
        for _ in range(warmup):
            step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(_duration(step))
    return speeds(seconds)


def speeds(seconds: Mapping[str, list[float]]) -> list[Speed]:
    """Returns the speeds of steps that were timed in turns; the first is the baseline."""
    baseline = np.array(next(iter(seconds.values())))
    return [_speed(name, baseline, values) for name, values in seconds.items()]


def against(speeds: list[Speed], name: str) -> list[Speed]:
    """Returns the speeds relative to another baseline."""
    baseline = np.array(next(speed.seconds for speed in speeds if speed.name == name))
    return [_speed(speed.name, baseline, speed.seconds) for speed in speeds]


def _duration(step: Callable[[], Any]) -> float:
    _wait_for_gpu()
    start = time.perf_counter()
    step()
    _wait_for_gpu()
    return time.perf_counter() - start


def _wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _speed(name: str, baseline: np.ndarray, seconds: list[float]) -> Speed:
    low, ratio, high = np.quantile(baseline / np.array(seconds), [0.25, 0.5, 0.75]).tolist()
    return Speed(name, ratio, low, high, seconds)


def prepare(threads: int | None, seed: int) -> str:
    """Sets the seed and torch's threads (None: the default). Returns the device to measure on."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    return "cuda" if torch.cuda.is_available() else "cpu"


def environment() -> dict[str, Any]:
    """Returns versions and hardware that a speed depends on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": _cpu(),
        "gpu": gpu,
        "bf16": resolve_precision("auto") == "bf16-mixed",  # computed in hardware
    }


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def print_table(title: str, columns: list[str], rows: list[list[str]], note: str = "") -> None:
    """Prints a table; the first column is text, the others are numbers."""
    table = Table(title=title, title_justify="left", caption=note, caption_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def print_speeds(title: str, speeds: list[Speed]) -> None:
    """Prints the ratios with their quartiles, and the environment."""
    rows = [[s.name, f"{s.ratio:.2f}", f"{s.low:.2f} to {s.high:.2f}"] for s in speeds]
    note = f"{len(speeds[0].seconds)} rounds; " + ", ".join(
        f"{key} {value}" for key, value in environment().items() if value is not None
    )
    print_table(title, ["step", "speed ratio", "quartiles"], rows, note)


def print_against_peers(title: str, speeds: list[Speed], peers: Collection[str]) -> None:
    """Prints the ratios to the fastest peer, and those of the first step to every peer.

    Args:
        peers: names of the peers' steps; if there are none, the baseline stays the same.
    """
    peer_speeds = [speed for speed in speeds if speed.name in peers]
    ours = speeds[0].name
    fastest = max(peer_speeds, key=lambda speed: speed.ratio).name if peer_speeds else ours
    print_speeds(f"{title}: against {fastest}", against(speeds, fastest))
    for peer in peer_speeds:
        speed = against(speeds, peer.name)[0]
        spread = f"{speed.low:.2f} to {speed.high:.2f}"
        print(f"{ours}: {speed.ratio:.2f} ({spread}) times as fast as {peer.name}")


def write(path: str | Path, **record: Any) -> None:
    """Writes results, settings and environment as JSON."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**record, "environment": environment()}, indent=2, default=_plain)
    path.write_text(text + "\n")
    print(f"Results: {path}")


def _plain(value: Any) -> Any:
    if isinstance(value, Speed):
        return asdict(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
