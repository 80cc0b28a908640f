"""The exception for mistakes that the user can fix."""


class UserError(Exception):
    """A mistake that the user can fix.

    The message is one line: what is wrong, then what to do. The command line prints it without a
    traceback and exits with status 1. From Python it is an ordinary exception.
    """


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its class name if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
