"""Memory benchmark: the training that it measures runs."""

import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import memory


@pytest.mark.slow
def test_a_measured_training_reports_its_peak(monkeypatch):
    threads = torch.get_num_threads()
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")  # restored after the test
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    peaks = []
    memory.train_briefly(0, 1, port, "prior_small", 1, SimpleNamespace(put=peaks.append))
    torch.set_num_threads(threads)
    assert peaks[0] > 0
