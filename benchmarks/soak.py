"""Whether a long training keeps to its memory: that of `src/train.py`, every few seconds.

Resident memory, as Linux tells it. The target: after the first ten minutes it grows by no more than
2 %. The growth is from the median of the first tenth of what follows to that of the last tenth, for
the process and its workers together. SIGTERM ends the training, as it ends a user's.

    python benchmarks/soak.py [minutes=60] [settle=10] [any setting=value] [any key=value of conf/]
"""

import contextlib
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import settings as command_line
import timing
from omegaconf import OmegaConf

from tilewright.viz.plots import curves

ROOT = Path(__file__).parents[1]
DEFAULTS = {
    "minutes": 60,
    "settle": 10,  # minutes that do not count
    "every": 5,  # seconds between two looks
    "stage": "prior",
    "target": 0.02,
    "out": "logs/benchmarks/soak.json",
}
MIB = 2**20


def family(pid: int) -> list[int]:
    """A process, those that it has started, and so on."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:  # grows as it goes
        found += [child for child, parent in parents.items() if parent == one]
    return found


def resident(pid: int) -> int:
    """Bytes of memory that a process holds, also those that it shares with others."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def watch(process: subprocess.Popen, minutes: float, every: float) -> list[dict[str, float]]:
    """Seconds, MiB of the process, MiB of its workers, and how many these are."""
    looks = []
    began = time.monotonic()
    while time.monotonic() - began < 60 * minutes and process.poll() is None:
        time.sleep(every)
        try:
            own, *workers = map(resident, family(process.pid))
        except OSError:  # one of them has just ended
            continue
        looks.append(
            {
                "seconds": time.monotonic() - began,
                "own": own / MIB,
                "workers": sum(workers) / MIB,
                "count": len(workers),
            }
        )
    return looks


def growth(looks: list[dict[str, float]], settle: float) -> float:
    """By what share memory grew, after so many minutes."""
    counted = [look["own"] + look["workers"] for look in looks if look["seconds"] >= 60 * settle]
    tenth = max(1, len(counted) // 10)
    return float(np.median(counted[-tenth:]) / np.median(counted[:tenth]) - 1)


def main() -> None:
    settings, overrides = command_line.read(DEFAULTS, __doc__)
    words = [f"stage={settings.stage}", "trainer.max_steps=1000000", *overrides]
    process = subprocess.Popen([sys.executable, "src/train.py", *words], cwd=ROOT)
    looks = watch(process, settings.minutes, settings.every)
    if process.poll() is not None:
        sys.exit(f"error: the training ended after {looks[-1]['seconds'] if looks else 0:.0f} s")
    process.send_signal(signal.SIGTERM)
    process.wait()
    grown = growth(looks, settings.settle)
    reached = "reached" if grown <= settings.target else "missed"
    highest = max(look["own"] + look["workers"] for look in looks)
    steps = max(later["seconds"] - look["seconds"] for look, later in pairwise(looks))
    print(
        f"{grown:+.1%} after the first {settings.settle} of {settings.minutes} minutes, "
        f"{highest:.0f} MiB at most, {len(looks)} looks, {steps:.0f} s apart at most: the target "
        f"of {settings.target:.0%} is {reached}"
    )
    kinds = ["own", *(["workers"] if any(look["count"] for look in looks) else [])]
    lines = {kind: [(look["seconds"] / 60, look[kind]) for look in looks] for kind in kinds}
    picture = Path(settings.out).with_suffix(".png")
    curves(lines, picture, across="minutes", up="resident memory, MiB")
    timing.write(
        settings.out,
        growth=grown,
        looks=looks,
        settings=OmegaConf.to_container(settings),
        overrides=overrides,
    )


if __name__ == "__main__":
    main()
