"""Memory growth of a long training by `src/train.py`.

Resident memory of the process and its workers is read from /proc every few seconds. Target: after
the first ten minutes it grows by at most 2 %, from the median of the first tenth of the remaining
time to that of the last tenth. SIGTERM ends the training.

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

from tilewright.viz.plots import plot_lines

ROOT = Path(__file__).parents[1]
DEFAULTS = {
    "minutes": 60,
    "settle": 10,  # minutes that are ignored
    "every": 5,  # seconds between two samples
    "stage": "prior",
    "target": 0.02,
    "out": "logs/benchmarks/soak.json",
}
MIB = 2**20


def process_tree(pid: int) -> list[int]:
    """Returns the ids of a process and all of its descendants."""
    parents = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has just ended
            parents[int(file.parent.name)] = int(file.read_text().rpartition(")")[2].split()[1])
    tree = [pid]
    for ancestor in tree:  # grows during the loop
        tree += [child for child, parent in parents.items() if parent == ancestor]
    return tree


def resident(pid: int) -> int:
    """Returns the resident bytes of a process, shared memory included."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def watch(process: subprocess.Popen, minutes: float, every: float) -> list[dict[str, float]]:
    """Samples MiB of the process, MiB of its workers and their number."""
    samples = []
    start = time.monotonic()
    while time.monotonic() - start < 60 * minutes and process.poll() is None:
        time.sleep(every)
        try:
            own, *workers = map(resident, process_tree(process.pid))
        except OSError:  # one of them has just ended
            continue
        samples.append(
            {
                "seconds": time.monotonic() - start,
                "own": own / MIB,
                "workers": sum(workers) / MIB,
                "count": len(workers),
            }
        )
    return samples


def growth(samples: list[dict[str, float]], settle: float) -> float:
    """Returns the relative growth of memory after the first `settle` minutes."""
    totals = [s["own"] + s["workers"] for s in samples if s["seconds"] >= 60 * settle]
    tenth = max(1, len(totals) // 10)
    return float(np.median(totals[-tenth:]) / np.median(totals[:tenth]) - 1)


def main() -> None:
    settings, overrides = command_line.parse_known(DEFAULTS, __doc__)
    words = [f"stage={settings.stage}", "trainer.max_steps=1000000", *overrides]
    process = subprocess.Popen([sys.executable, "src/train.py", *words], cwd=ROOT)
    samples = watch(process, settings.minutes, settings.every)
    if process.poll() is not None:
        sys.exit(
            f"error: the training ended after {samples[-1]['seconds'] if samples else 0:.0f} s"
        )
    process.send_signal(signal.SIGTERM)
    process.wait()
    grown = growth(samples, settings.settle)
    reached = "reached" if grown <= settings.target else "missed"
    highest = max(sample["own"] + sample["workers"] for sample in samples)
    interval = max(later["seconds"] - sample["seconds"] for sample, later in pairwise(samples))
    print(
        f"{grown:+.1%} after the first {settings.settle} of {settings.minutes} minutes, "
        f"{highest:.0f} MiB at most, {len(samples)} samples, {interval:.0f} s apart at most: the "
        f"target of {settings.target:.0%} is {reached}"
    )
    kinds = ["own", *(["workers"] if any(sample["count"] for sample in samples) else [])]
    lines = {kind: [(sample["seconds"] / 60, sample[kind]) for sample in samples] for kind in kinds}
    image = Path(settings.out).with_suffix(".png")
    plot_lines(lines, image, x_label="minutes", y_label="resident memory, MiB")
    timing.write(
        settings.out,
        growth=grown,
        samples=samples,
        settings=OmegaConf.to_container(settings),
        overrides=overrides,
    )


if __name__ == "__main__":
    main()
