"""The one exception that speaks to the user."""


class UserError(Exception):
    """A mistake that the user can mend.

    The message is one line: it names the thing that is wrong and the way out. The command line
    prints it without a traceback and leaves with status 1; from Python it is an exception like any
    other.
    """
