"""Speed as ratios: several steps measured in turn, so that they share the machine's moods.

Seconds depend on the machine and on what else it does, and so they compare with nothing. What two
steps took one right after the other does compare: the figure is the median of these paired ratios,
with their quartiles for a spread.
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

from tilewright.cli import app


@dataclass(frozen=True)
class Speed:
    """How many times as fast as the baseline a step is.

    Args:
        ratio: the median over the rounds; low, high: their quartiles.
        seconds: of each round.
    """

    name: str
    ratio: float
    low: float
    high: float
    seconds: list[float]


def compare(
    steps: Mapping[str, Callable[[], Any]], rounds: int = 10, warmup: int = 2
) -> list[Speed]:
    """Measures the steps in turn, A B C A B C ...; the first one is the baseline.

    Args:
        steps: by name; whatever has to be compiled or allocated is, in the warm-up.
        rounds: how many times each is measured.
        warmup: how many times each runs beforehand.
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
    """What has been measured in turn, by name; the first is the baseline."""
    baseline = np.array(next(iter(seconds.values())))
    return [_speed(name, baseline, values) for name, values in seconds.items()]


def against(speeds: list[Speed], name: str) -> list[Speed]:
    """The same measurements with another baseline."""
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
    """Sets the seed and, where asked for, torch's threads; the device to measure on."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    return "cuda" if torch.cuda.is_available() else "cpu"


def environment() -> dict[str, Any]:
    """What else a speed depends on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu": _cpu(),
        "gpu": gpu,
        "bf16": app.precision("auto") == "bf16-mixed",  # computed in hardware
    }


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def show(title: str, columns: list[str], rows: list[list[str]], note: str = "") -> None:
    """Prints a table; the first column is text, the others are figures."""
    table = Table(title=title, title_justify="left", caption=note, caption_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def show_speeds(title: str, speeds: list[Speed]) -> None:
    """Prints the ratios with their spread, and what they depend on."""
    rows = [[s.name, f"{s.ratio:.2f}", f"{s.low:.2f} to {s.high:.2f}"] for s in speeds]
    note = f"{len(speeds[0].seconds)} rounds; " + ", ".join(
        f"{key} {value}" for key, value in environment().items() if value is not None
    )
    show(title, ["step", "times as fast", "quartiles"], rows, note)


def show_against_peers(title: str, speeds: list[Speed], peers: Collection[str]) -> None:
    """Prints the ratios to the fastest peer, and those of the first step to every peer.

    Args:
        peers: names of the steps that are the peers'; with none the baseline stays what it was.
    """
    rivals = [speed for speed in speeds if speed.name in peers]
    ours = speeds[0].name
    best = max(rivals, key=lambda speed: speed.ratio).name if rivals else ours
    show_speeds(f"{title}: against {best}", against(speeds, best))
    for rival in rivals:
        speed = against(speeds, rival.name)[0]
        spread = f"{speed.low:.2f} to {speed.high:.2f}"
        print(f"{ours}: {speed.ratio:.2f} ({spread}) times as fast as {rival.name}")


def write(path: str | Path, **record: Any) -> None:
    """Writes figures, settings and what they depend on as JSON."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**record, "environment": environment()}, indent=2, default=_plain)
    path.write_text(text + "\n")
    print(f"Figures are in {path}")


def _plain(value: Any) -> Any:
    if isinstance(value, Speed):
        return asdict(value)
    raise TypeError(f"no JSON of {type(value).__name__}")
