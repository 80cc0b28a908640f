"""Benchmark of the number of training pairs, on tiny networks and sets."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DVAE = "experiment=dvae_laptop,model.network.n_hid=8,model.network.n_init=8"
PRIOR = (
    "experiment=prior_laptop,model.network.dim=16,model.network.depth=1,model.network.heads=2,"
    "callbacks.samples=null"
)
TRAINING = [
    "trainer=cpu",
    "trainer.max_steps=2",
    "trainer.val_check_interval=1",
    "data.batch_size=4",
    "data.crops_per_image=0",
    "+data.source.limit=100",
    "compile=false",
    "~callbacks.frechet",
]


@pytest.mark.slow
def test_every_size_is_trained_and_measured_once(tmp_path):
    pytest.importorskip("resvg_py")
    words = [
        sys.executable,
        str(ROOT / "benchmarks" / "data_size.py"),
        "sizes=[4,8]",
        f"dvae=[{DVAE}]",
        f"prior=[{PRIOR}]",
        "among=3",
        "captions=4",
        f"logs={tmp_path / 'logs'}",
        f"out={tmp_path / 'sizes.json'}",
        f"paths.data={tmp_path / 'data'}",
        *TRAINING,
    ]
    for _ in range(2):  # the second run finds everything trained and evaluated
        done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=600)
        assert done.returncode == 0, done.stderr
    assert "Trained" not in done.stdout
    results = json.loads((tmp_path / "sizes.json").read_text())["results"]
    assert [result["pairs"] for result in results] == [4, 8]
    for result in results:
        assert result["last_update"] == 2
        assert {
            "known captions, generated, first 1",
            "new captions, reconstructed, first 1",
        } <= set(result["shares"])
    for name in ("sizes.png", "data_size_curve.png"):
        assert (tmp_path / name).is_file()
