"""Dry run of the benchmark of encoding."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import encoding


def test_dry_run_measures_the_loop_and_the_command(tmp_path, monkeypatch):
    arguments = ["images=8", "image_size=16", "processes=[1]", "rounds=1"]
    words = ["encoding.py", *arguments, f"out={tmp_path / 'encoding.json'}"]
    monkeypatch.setattr("sys.argv", words)
    encoding.main()
    speeds = json.loads((tmp_path / "encoding.json").read_text())["speeds"]
    assert [speed["name"] for speed in speeds] == ["a plain loop", "ours, processes=1"]
