"""What a run was made by: the code's commit, the command, versions, the machine.

`environment.json` in the run's folder is a list with an entry for each time that the run was begun
or resumed. It has no names of hosts or people, and no paths but those of the command.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tilewright import program
from tilewright.hardware import available_cpus

ENVIRONMENT = "environment.json"
PACKAGES = (
    *("tilewright", "torch", "torchvision", "pytorch-lightning", "torchmetrics"),
    *("hydra-core", "datasets", "tokenizers", "numpy"),
)


def record(run: Path, checkpoint: Path | None = None) -> None:
    """Adds an entry to a run's `environment.json`.

    Args:
        checkpoint: what the run goes on from; None where it begins.
    """
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "resumed_from": None if checkpoint is None else checkpoint.name,
        "command": f"{program.invocation('train')} {shlex.join(sys.argv[1:])}",
        **code(),
        "python": platform.python_version(),
        "packages": packages(),
        "machine": machine(),
    }
    # Under another name first, so that a full disk does not cost the entries before.
    whole = run / f".{ENVIRONMENT}-{os.getpid()}"
    whole.write_text(json.dumps([*load(run), entry], indent=2) + "\n")
    whole.replace(run / ENVIRONMENT)


def load(run: Path) -> list[dict[str, Any]]:
    """A run's entries, the oldest first; none where the run has no record or a broken one."""
    try:
        return json.loads((run / ENVIRONMENT).read_text())
    except (OSError, ValueError):
        return []


def code() -> dict[str, Any]:
    """The commit of this code, and whether src/ or conf/ differ from it.

    Both None where this file is in no git repository, as in an installed package.
    """
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)  # else it is some other project's
        commit = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--", ":/src", ":/conf")
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changes)}


def _git(*words: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def packages() -> dict[str, str | None]:
    """Versions of what a training depends on most; None for one that is not installed."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def machine() -> dict[str, Any]:
    """System, processor, cores that may be used, threads, and the accelerators."""
    import torch

    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": available_cpus(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "cuda": torch.version.cuda if gpus else None,
    }


def _cpu() -> str:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
