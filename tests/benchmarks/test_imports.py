"""Benchmarks run rarely, so a test checks that they still find everything that they import."""

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
def test_every_benchmark_can_be_imported():
    words = [sys.executable, "-W", "ignore", "-c", IMPORT_ALL]
    process = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert process.returncode == 0, process.stderr
