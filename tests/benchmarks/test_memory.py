"""Memory benchmark: the training that it measures runs, and its counts of adapters."""

import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import memory

from tilewright.training.adapters import LowRankAdapters


@pytest.mark.parametrize("model", ["llamagen_256", "mindalle"])
def test_adapters_of_public_priors_are_counted_as_peft_makes_them(model):
    pytest.importorskip("peft")
    adapters = LowRankAdapters(rank=8)
    with torch.device("meta"):
        network = memory.PUBLIC[model]()
        counted = memory.count_trained(network, adapters)
        adapters.add_to(network)
    assert counted == sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert 4e6 < counted < 10e6


def test_adapters_and_eight_bits_take_less_memory():
    network = memory.build("prior_small")
    kinds = [(None, 32), (None, 8), (LowRankAdapters(rank=2), 8)]
    total = [
        memory.per_gpu(network, "ddp", 1, 1, "bf16-mixed", True, lora, bits).total
        for lora, bits in kinds
    ]
    assert total[0] > total[1] > total[2]
    full = memory.per_gpu(network, "ddp", 1, 1, "bf16-mixed", True)
    assert full.moments == 2 * full.weights


@pytest.mark.slow
def test_a_measured_training_reports_its_peak(monkeypatch):
    threads = torch.get_num_threads()
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")  # restored after the test
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    # The real peak of this process may be older than the training.
    peaks, usage = [], iter([SimpleNamespace(ru_maxrss=kib) for kib in (100, 250)])
    system = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: next(usage))
    monkeypatch.setattr(memory, "resource", system)
    memory.train_briefly(0, 1, port, "prior_small", 1, None, SimpleNamespace(put=peaks.append))
    torch.set_num_threads(threads)
    assert peaks == [150 * 2**10]
