"""Benchmarks run rarely, so tests check that what they name still exists."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]
IMPORT_ALL = """
import importlib, pathlib, sys
sys.path.insert(0, "benchmarks")
for file in sorted(pathlib.Path("benchmarks").glob("*.py")):
    importlib.import_module(file.stem)
"""


@pytest.mark.slow
def test_every_benchmark_can_be_imported():
    words = [sys.executable, "-W", "ignore", "-c", IMPORT_ALL]
    process = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert process.returncode == 0, process.stderr


def test_every_observer_is_a_configured_callback():
    observers = runpy.run_path(str(ROOT / "benchmarks" / "training.py"))["OBSERVERS"]
    files = (ROOT / "conf" / "callbacks").glob("*.yaml")
    assert observers <= {name for file in files for name in OmegaConf.load(file)}
