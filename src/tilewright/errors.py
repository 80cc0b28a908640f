"""The exception for mistakes that the user can fix, and shared messages."""

import textwrap


class UserError(Exception):
    """A mistake that the user can fix.

    The message is one line: what is wrong, then what to do. The command line prints it without a
    traceback and exits with status 1. From Python it is an ordinary exception.
    """


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its class name if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def mismatch(error: RuntimeError) -> str:
    """Returns on one line why a state dict does not fit a network, from torch's error."""
    _, _, reasons = str(error).partition("\n")  # the first line only names the class
    return textwrap.shorten(reasons, 200)


def missing_module(where: str, module: str | None) -> str:
    """Returns the message that a setting needs a module that cannot be imported."""
    return (
        f"{where} needs the module {module}, which cannot be imported: pip install its package, or "
        "add the folder of your own module to PYTHONPATH"
    )
