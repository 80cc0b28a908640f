"""Setup for `torch.compile`: the choice whether to compile, and the recompile limit."""

import os
import shutil
import sys

import torch

from tilewright.errors import UserError

# Inductor's compilers if CXX and CC are not set. A GPU needs one too, for kernel launchers.
CPU_COMPILERS = {"darwin": "clang++", "win32": "cl"}
GPU_COMPILERS = ("cc", "gcc", "clang")
# Past torch's default of 8 shapes, a function silently runs in eager mode. A block has one graph
# per pattern and batch size, for training and for validation.
RECOMPILE_LIMIT = 128


def should_compile(setting: bool | str, device: str = "cpu") -> bool:
    """Returns True if networks are to be compiled for a device.

    Args:
        setting: True, False, or "auto", which compiles if this machine has a compiler.

    Raises:
        UserError: the setting is True and there is no compiler, or the setting is another value.
    """
    if not isinstance(setting, bool) and setting != "auto":
        raise UserError(f"compile={setting} is not a valid setting: use true, false or auto")
    if not setting:
        return False
    if device == "cpu":
        names = [os.environ.get("CXX") or CPU_COMPILERS.get(sys.platform, "g++")]
    else:
        names = [os.environ["CC"]] if os.environ.get("CC") else list(GPU_COMPILERS)
    if any(shutil.which(name) for name in names):
        return True
    if setting == "auto":
        return False
    raise UserError(
        f"compile=true needs a compiler, and {' or '.join(names)} is not installed: install it, "
        "or leave compile out"
    )


def raise_recompile_limit() -> None:
    """Raises torch's recompile limit to `RECOMPILE_LIMIT` for functions compiled from now on."""
    torch.compiler.config.recompile_limit = RECOMPILE_LIMIT
