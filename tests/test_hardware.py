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
    assert resolve_device("cpu") == "cpu"
    for device in ("nonsense", "cuda:99"):
        with pytest.raises(UserError, match=f"device={device} is not available"):
            resolve_device(device)


def test_only_auto_precision_is_resolved():
    assert resolve_precision("16-true") == "16-true"
    assert resolve_precision("auto") in {"bf16-mixed", "32-true"}
