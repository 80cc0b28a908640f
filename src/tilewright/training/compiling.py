"""Setup for `torch.compile`: the choice whether to compile, what to leave out, and limits."""

import functools
import os
import shutil
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from tilewright.errors import UserError

# Inductor's compilers if CXX and CC are not set. A GPU needs one too, for kernel launchers.
CPU_COMPILERS = {"darwin": "clang++", "win32": "cl"}
GPU_COMPILERS = ("cc", "gcc", "clang")
# Past torch's default of 8 shapes, a function silently runs in eager mode. A block has one graph
# per pattern and batch size, for training and for validation.
RECOMPILE_LIMIT = 128

P = ParamSpec("P")
T = TypeVar("T")


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


def outside_graphs(function: Callable[P, T]) -> Callable[P, T]:
    """Keeps a function out of the graphs of its callers, as `torch.compiler.disable` does.

    torch's decorator imports the compiler even if nothing is compiled, which takes as long as
    importing torch.
    """
    disabled = torch._disable_dynamo(function)  # imports the compiler when it is called

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling() or "torch._dynamo" in sys.modules:
            return disabled(*args, **kwargs)
        return function(*args, **kwargs)

    return run
