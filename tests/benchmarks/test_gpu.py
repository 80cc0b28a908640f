"""Dry run of the GPU benchmark: all parts, in tiny sizes on a CPU."""

import json
import subprocess
import sys
from math import isfinite
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments):
    words = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *arguments]
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=600)


@pytest.mark.slow
def test_dry_run_measures_every_part(tmp_path):
    done = run("dry=true", f"out={tmp_path / 'gpu.json'}")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())["results"]
    parts = {"attention", "utilization", "kernels", "checkpointing", "decoding", "candidates"}
    assert set(results) == parts | {"dvae"}
    assert {"products", "other"} <= set(results["kernels"])
    assert sum(results["kernels"].values()) == pytest.approx(1)
    for name, part in results.items():
        assert all(isfinite(value) and value > 0 for value in part.values()), name
    assert results["utilization"]["prior_1b, share of peak"] < 1
