"""CPU cores, devices and precision."""

import os

import pytest

from tilewright.errors import UserError
from tilewright.hardware import available_cpus, resolve_device, resolve_precision


def test_available_cpus_respects_the_affinity_mask():
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("only Linux has CPU affinity")
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert available_cpus() == len(allowed)


def test_unavailable_devices_are_refused():
    with pytest.raises(UserError, match="device=null is not available"):
        resolve_device(None)
    assert resolve_device("cpu") == "cpu"
    for device in ("nonsense", "cuda:99", "meta", "hpu", "cpu:-1"):
        with pytest.raises(UserError, match=f"device={device} is not available"):
            resolve_device(device)


@pytest.mark.parametrize(
    ("requested", "on_cpu", "on_gpu"),
    [
        ("32-true", "32-true", "32-true"),
        (32, "32-true", "32-true"),
        ("bf16", "bf16-mixed", "bf16-mixed"),
        ("bf16-mixed", "bf16-mixed", "bf16-mixed"),
        ("16-mixed", "16-mixed", "16-mixed"),
        (16, "16-mixed", "16-mixed"),
        ("16-true", "precision=bf16-mixed", "precision=16-mixed"),
        ("bf16-true", "precision=bf16-mixed", "precision=bf16-mixed"),
        ("64-true", "one of 32-true", "one of 32-true"),
        ("transformer-engine", "one of 32-true", "one of 32-true"),
        ("transformer-engine-float16", "one of 32-true", "one of 32-true"),
        (8, "one of 32-true", "one of 32-true"),
        (None, "one of 32-true", "one of 32-true"),
    ],
)
def test_a_precision_is_honored_or_refused(requested, on_cpu, on_gpu, monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    for accelerator, expected in (("cpu", on_cpu), ("auto", on_gpu)):
        if expected in {"32-true", "bf16-mixed", "16-mixed"}:
            assert resolve_precision(requested, accelerator) == expected
        else:
            with pytest.raises(UserError) as caught:
                resolve_precision(requested, accelerator)
            assert f"trainer.precision={requested} is not possible" in str(caught.value)
            assert expected in str(caught.value)


def test_auto_precision_depends_on_the_accelerator(monkeypatch):
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    assert resolve_precision("auto") == "bf16-mixed"
    assert resolve_precision("auto", "cpu") == "32-true"
