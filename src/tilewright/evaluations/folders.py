"""Folders of evaluations, which may run at the same time."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from tilewright.errors import UserError
from tilewright.files import is_locked

LOCK = ".eval.lock"
PREFIX = ".eval-"


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Locks a folder, which one process holds at a time. The lock's file is removed at the end.

    Raises:
        UserError: the folder cannot be written or locked.
    """
    file_lock = FileLock(folder / LOCK)
    try:
        file_lock.acquire()
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written or locked ({error.strerror or error}): copy the run to a "
            "file system that has locks"
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()  # a waiting process notices that, and locks a new file
        file_lock.release()


@contextlib.contextmanager
def temporary_folder(run: Path) -> Iterator[Path]:
    """Yields a folder for the images of an evaluation, and removes it at the end.

    Folders of killed evaluations are removed, too: the operating system has released their locks. A
    folder that cannot be removed stays for the next evaluation.
    """
    with contextlib.ExitStack() as in_use:
        folder = _create_locked_folder(run, in_use)
        images = folder / "images"
        images.mkdir()
        try:
            yield images
        finally:
            in_use.close()  # NFS keeps an open file, and with it the folder
            shutil.rmtree(folder, ignore_errors=True)


def _create_locked_folder(run: Path, in_use: contextlib.ExitStack) -> Path:
    """Returns a new folder, which is locked until `in_use` closes, and removes unlocked ones."""
    with lock(run):
        for folder in run.glob(f"{PREFIX}*/"):
            if not is_locked(folder / LOCK):
                shutil.rmtree(folder, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=run))
        in_use.enter_context(lock(folder))
        return folder
