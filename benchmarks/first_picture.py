"""Time of `generate` for one picture, against `import torch` alone, which every command waits for.

It needs a trained prior: the newest one, or run=PATH.

    python benchmarks/first_picture.py [rounds=5] [any setting of src/generate.py]
"""

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import settings as command_line
import timing
from omegaconf import OmegaConf

DEFAULTS = {
    "rounds": 5,
    "warmup": 1,  # reads the files of both from the disk
    "target": 2.0,
    "out": "logs/benchmarks/first_picture.json",
}
GENERATE = Path(__file__).parents[1] / "src" / "generate.py"
TORCH, PICTURE = "import torch", "generate one picture"


def run_python(*arguments: str) -> None:
    """Runs a Python process. Its errors stay visible."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    settings, others = command_line.parse_known(DEFAULTS, __doc__)
    with tempfile.TemporaryDirectory() as folder:
        picture = ["prompt=a large red circle", "n=1", f"out={folder}", *others]
        steps = {
            TORCH: partial(run_python, "-c", "import torch"),
            PICTURE: partial(run_python, str(GENERATE), *picture),
        }
        speeds = timing.compare(steps, settings.rounds, settings.warmup)
    timing.print_speeds("One picture from the command line", speeds)
    share = 1 / speeds[1].ratio
    verdict = "reached" if share <= settings.target else "missed"
    print(f"time: {share:.2f} of {TORCH}, target {settings.target:.2f}: {verdict}")
    container = OmegaConf.to_container(settings)
    timing.write(settings.out, speeds=speeds, time=share, arguments=others, settings=container)


if __name__ == "__main__":
    main()
