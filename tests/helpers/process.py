"""A command in a process of its own, in a size that takes seconds, and what it leaves."""

import json
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
SMALL = [
    "trainer=cpu",
    "data.source.train=200",
    "data.source.validation=32",
    "data.source.zeroshot=16",
    "data.batch_size=8",
    "trainer.max_steps=6",
    "trainer.val_check_interval=3",
    "trainer.limit_val_batches=1",
    "trainer.log_every_n_steps=1",
]
FRECHET = "callbacks.frechet.images=4"
SAMPLES = ["callbacks.samples.count=2", "callbacks.samples.candidates=1"]
PROMPT = "a large red circle"


def run(home, command, *arguments, status=0):
    """A finished process, which ended with this status."""
    words = [sys.executable, str(ROOT / "src" / f"{command}.py"), *arguments]
    words += [f"paths.data={home / 'data'}", f"paths.logs={home / 'logs'}"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def step(checkpoint):
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]


def figures(run, metric):
    return json.loads((run / "eval" / metric / "results.json").read_text())


def pictures(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}
