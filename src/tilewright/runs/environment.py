"""Record of the command, code, package versions and machine behind a run.

`environment.json` in the run's folder is a list with one entry for each start or resume. It names
no hosts or people. Paths occur only where the user typed them.
"""

import json
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tilewright import files, program
from tilewright.hardware import available_cpus

ENVIRONMENT = "environment.json"
PACKAGES = (
    *("tilewright", "torch", "torchvision", "pytorch-lightning", "torchmetrics"),
    *("hydra-core", "datasets", "tokenizers", "numpy"),
)


def record(run: Path, arguments: Sequence[str], checkpoint: Path | None = None) -> None:
    """Adds an entry to a run's `environment.json`.

    Args:
        run: the run's folder.
        arguments: arguments of the command that trains the run.
        checkpoint: the one that the training resumes from; None if it starts.
    """
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "resumed_from": None if checkpoint is None else checkpoint.name,
        "command": f"{program.invocation('train')} {shlex.join(arguments)}",
        **code(),
        "python": platform.python_version(),
        "packages": packages(),
        "machine": machine(),
    }
    entries = json.dumps([*load(run), entry], indent=2)
    files.write_atomically(run / ENVIRONMENT, entries + "\n")


def load(run: Path) -> list[dict[str, Any]]:
    """Returns a run's entries, the oldest first, or no entries if the file is absent or broken."""
    try:
        entries = json.loads((run / ENVIRONMENT).read_text())
    except (OSError, ValueError):
        return []
    is_valid = isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)
    return entries if is_valid else []


def code() -> dict[str, Any]:
    """Returns the commit of this code, and whether src/ or conf/ differ from it.

    Both are None outside a git checkout, as in an installed package.
    """
    try:
        # A package installed inside another project's repository is not part of that repository.
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        commit = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--", ":/src", ":/conf")
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": commit, "dirty": bool(changes)}


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def packages() -> dict[str, str | None]:
    """Returns the versions of the main dependencies, None for those that are not installed."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def machine() -> dict[str, Any]:
    """Returns the system, processor, available cores, torch's threads, and GPUs."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": available_cpus(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "cuda": torch.version.cuda if gpus else None,
    }


def _cpu_model() -> str:
    """Returns the processor's model name, or its architecture if the system has no name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
