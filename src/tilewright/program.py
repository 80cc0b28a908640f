"""The program that is running: its name, its settings in conf/, and its standard output."""

import os
import re
import stat
import sys
from pathlib import Path

from tilewright.errors import UserError

NAME = "tilewright"

PACKAGE = Path(__file__).parent


def find_conf(package: Path) -> Path:
    """Returns the folder conf/. A wheel holds it inside the package, a checkout at the top.

    Raises:
        UserError: neither is there.
    """
    folders = (package / "conf", package.parents[1] / "conf")
    for folder in folders:
        if folder.is_dir():
            return folder
    raise UserError(
        f"{NAME} needs its settings in {' or '.join(map(str, folders))}: install it again with "
        f"pip install --force-reinstall {NAME}, or restore conf/ in its checkout"
    )


CONF = find_conf(PACKAGE)


def is_installed_command() -> bool:
    """Returns True if this program is the installed `tilewright` and not a script under `src/`."""
    return Path(sys.argv[0]).stem == NAME


def invocation(command: str) -> str:
    """Returns the words that start a command: `tilewright train` or `python src/train.py`."""
    has_scripts = (Path(__file__).parents[1] / f"{command}.py").is_file()  # not in a wheel
    if is_installed_command() or not has_scripts:
        return f"{NAME} {command}"
    return f"python src/{command}.py"


def with_own_invocations(text: str) -> str:
    """Rewrites every `python src/NAME.py` of a text to the form in which this program started."""
    return re.sub(r"python src/(\w+)\.py", lambda match: invocation(match[1]), text)


def discard_stdout() -> None:
    """Discards further output. Used when a reader such as `head` has closed the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def discard_terminal_output() -> None:
    """Discards further output to a terminal. Used when it is closed: writing to it would fail."""
    for descriptor in (1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):  # isatty() is False for a closed terminal
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
