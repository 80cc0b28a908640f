"""`src/encode.py` on several processes and after SIGKILL."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SMALL = ["data.source.train=8200", "data.source.validation=8", "data.source.zeroshot=8"]


def start(home, name, *words):
    words = [sys.executable, str(ROOT / "src" / f"{name}.py"), *words, *SMALL]
    words += [f"paths.data={home / 'data'}", f"paths.logs={home / 'logs'}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, cwd=ROOT, start_new_session=True, **pipes)


def run(home, name, *words):
    process = start(home, name, *words)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def files(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*.npy")}


def test_encodes_on_several_processes_and_after_a_kill(tmp_path):
    steps = [
        "trainer=cpu",
        "data.batch_size=8",
        "trainer.max_steps=1",
        "trainer.limit_val_batches=1",
    ]
    quick = [*steps, "trainer.val_check_interval=1", "~callbacks.frechet"]
    run(tmp_path, "train", "stage=dvae", *quick)
    output = run(tmp_path, "encode", "device=cpu", f"data.cache={tmp_path / 'reference'}")
    assert "Image tokens of train (8200 images)" in " ".join(output.split())

    cache = tmp_path / "data" / "image_tokens"
    killed = start(tmp_path, "encode", "device=cpu", "processes=2")
    while not list(cache.glob("*/*.npy")) and killed.poll() is None:
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    finished = {path: path.stat().st_mtime_ns for path in cache.glob("*/*.npy")}
    assert finished
    output = run(tmp_path, "encode", "device=cpu", "processes=2")
    assert len(re.findall("images", output)) == 2
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # not encoded again
    encoded, expected = files(cache), files(tmp_path / "reference")
    assert len(encoded) == len(expected) == 2
    assert not [path for path in cache.glob("*/.*") if "partial" in path.name]
    for folder in (tmp_path / "reference").iterdir():
        for file in folder.glob("*.npy"):
            assert (cache / folder.name / file.name).read_bytes() == file.read_bytes()

    times = {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")}
    run(tmp_path, "train", "stage=prior", *quick, "~callbacks.samples")
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.npy")} == times
