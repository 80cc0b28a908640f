"""Packages that commands do not import, because the user would wait for them."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers import untrained

SRC = Path(__file__).parents[2] / "src"
# Packages that only training, evaluation or compilation needs.
HEAVY = {
    *("pytorch_lightning", "lightning_fabric", "torchmetrics", "tensorboard"),
    *("datasets", "pyarrow", "pandas", "transformers"),
    *("cleanfid", "scipy", "torchvision", "matplotlib"),
    *("torch._dynamo", "torch._inductor", "torch.distributed.checkpoint", "sympy"),
}


def imported_modules(*arguments):
    """Returns the names of the modules that a Python process imports."""
    command = [sys.executable, "-X", "importtime", *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=SRC)
    assert process.returncode == 0, process.stderr[-2000:]
    lines = [line for line in process.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return untrained.all_stages(tmp_path_factory.mktemp("runs"))


def test_generate_imports_torch_and_no_package_for_training(logs, tmp_path):
    image = logs.parent / "images" / "0.png"
    settings = [f"paths.logs={logs}", "prompt=a red circle", "best_of=2", "n=1"]
    settings += [f"image_prompt={image}", "rows=1", "device=cpu", f"out={tmp_path}"]
    modules = imported_modules(SRC / "generate.py", *settings)
    assert (tmp_path / "000-000.png").is_file()
    assert "torch" in modules
    assert not modules & HEAVY


def test_runs_does_not_import_torch(logs):
    modules = imported_modules(SRC / "runs.py", f"paths.logs={logs}")
    assert "tilewright.runs.listing" in modules
    assert not modules & {"torch", "numpy", "PIL", *HEAVY}


@pytest.mark.parametrize("script", sorted(SRC.glob("*.py")), ids=lambda script: script.stem)
def test_help_does_not_import_torch(script):
    modules = imported_modules(script, "--help")
    assert "hydra" in modules
    assert not modules & {"torch", "numpy", "PIL", *HEAVY}


def test_the_package_itself_imports_almost_nothing():
    modules = imported_modules("-c", "import tilewright")
    assert "tilewright" in modules
    assert not modules & {"torch", "numpy", "hydra", "omegaconf", *HEAVY}
