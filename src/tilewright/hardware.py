"""CPU cores, devices and numeric precision of this machine."""

import os

from tilewright.checks import format_value
from tilewright.errors import UserError

# Lightning's short names of the precisions that can train.
PRECISION_ALIASES = {
    "32": "32-true",
    "bf16": "bf16-mixed",
    "16": "16-mixed",
}


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
    refusal = UserError(
        f"device={format_value(requested)} is not available on this machine: use device=auto"
    )
    try:
        kind = torch.device(requested).type
        if kind not in ("cpu", trainer_device("auto")):  # torch knows more, such as "meta"
            raise refusal
        torch.empty(0, device=requested)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise refusal from error
    return requested


def has_trainer_gpu(accelerator: str) -> bool:
    """Returns True if a trainer with this accelerator ("auto", "cpu", ...) computes on a GPU."""
    import torch

    return accelerator != "cpu" and torch.accelerator.is_available()


def trainer_device(accelerator: str) -> str:
    """Returns the type of the device of a trainer with this accelerator, such as "cuda"."""
    import torch

    device = torch.accelerator.current_accelerator() if has_trainer_gpu(accelerator) else None
    return "cpu" if device is None else device.type


def check_accelerator(accelerator: str) -> None:
    """Checks that this machine has the accelerator of a trainer.

    Raises:
        UserError: the machine lacks it.
    """
    if accelerator not in ("auto", "cpu") and not has_trainer_gpu(accelerator):
        raise UserError(
            f"trainer.accelerator={accelerator} needs a GPU, and torch finds none: set trainer=cpu"
        )


def resolve_precision(requested: str | int, accelerator: str = "auto") -> str:
    """Returns Lightning's precision. "auto" is bf16-mixed on hardware with bf16 math, else fp32.

    Args:
        requested: "auto", or one of Lightning's names.
        accelerator: Lightning's accelerator, such as "cpu". "auto" is a GPU if there is one.

    Raises:
        UserError: the precision is unknown, or cannot train.
    """
    import torch

    on_gpu = has_trainer_gpu(accelerator)
    if requested == "auto":
        if on_gpu and torch.cuda.is_available():
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            mkldnn = torch.backends.mkldnn.is_available()
            fast = not on_gpu and mkldnn and torch.cpu._is_avx512_bf16_supported()
        return "bf16-mixed" if fast else "32-true"
    precision = PRECISION_ALIASES.get(str(requested), str(requested))
    refusal = f"trainer.precision={requested} is not possible"
    if precision in ("bf16-true", "16-true"):
        mixed = precision.replace("true", "mixed")
        raise UserError(
            f"{refusal}: weights of 16 bits lose small updates and averages, so set "
            f"trainer.precision={mixed if on_gpu else 'bf16-mixed'}"
        )
    if precision not in PRECISION_ALIASES.values():
        names = ", ".join(PRECISION_ALIASES.values())
        raise UserError(f"{refusal}: set auto or one of {names}")
    return precision
