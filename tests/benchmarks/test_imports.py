"""Benchmarks run seldom; what they import of the project has to be there all the same."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMPORT_ALL = """
import importlib, pathlib, sys
sys.path.insert(0, "benchmarks")
for file in sorted(pathlib.Path("benchmarks").glob("*.py")):
    importlib.import_module(file.stem)
"""


@pytest.mark.slow
def test_every_benchmark_finds_what_it_imports():
    words = [sys.executable, "-W", "ignore", "-c", IMPORT_ALL]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
