"""What `torch.compile` needs: a compiler on this machine, and leave to compile for many shapes."""

import os
import shutil
import sys

import torch

from tilewright.errors import UserError

# What Inductor calls where CXX and CC do not say: for a CPU, and for the launchers on a GPU.
ON_CPU = {"darwin": "clang++", "win32": "cl"}
ON_GPU = ("cc", "gcc", "clang")
# For which one function is compiled. After torch's 8 it would run as it is, and a block alone is
# compiled for each pattern, to train and to validate, and for the last batch, which is smaller.
SHAPES = 128


def compiles(wanted: bool | str, device: str = "cpu") -> bool:
    """Whether to compile for a device: "auto" does where there is a compiler.

    Raises:
        UserError: it is asked for, and there is none; or it is neither a bool nor "auto".
    """
    if not isinstance(wanted, bool) and wanted != "auto":
        raise UserError(f"compile={wanted} is none of true, false and auto")
    if not wanted:
        return False
    if device == "cpu":
        names = [os.environ.get("CXX") or ON_CPU.get(sys.platform, "g++")]
    else:
        names = [os.environ["CC"]] if os.environ.get("CC") else list(ON_GPU)
    if any(shutil.which(name) for name in names):
        return True
    if wanted == "auto":
        return False
    raise UserError(
        f"compile=true needs a compiler, and there is no {' or '.join(names)} here: install one, "
        "or leave compile out"
    )


def allow_many_shapes() -> None:
    """Lets what is compiled from now on be compiled for `SHAPES` shapes."""
    torch.compiler.config.recompile_limit = SHAPES
