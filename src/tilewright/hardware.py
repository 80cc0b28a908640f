"""CPU cores, devices and numeric precision of this machine."""

import os

from tilewright.errors import UserError


def available_cpus() -> int:
    """Returns the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resolve_device(requested: str) -> str:
    """Returns the device to compute on. "auto" is a GPU if there is one, else the CPU.

    Raises:
        UserError: the requested device is not available.
    """
    import torch

    if requested == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=requested)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device={requested} is not available on this machine: use device=auto"
        ) from error
    return requested


def resolve_precision(requested: str | int) -> str | int:
    """Returns Lightning's precision. "auto" is bf16-mixed on hardware with bf16 math, else fp32."""
    import torch

    if requested != "auto":
        return requested
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if fast else "32-true"
