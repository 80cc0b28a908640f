"""Folders of evaluations, which may run at the same time."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".eval.lock"
PREFIX = ".eval-"


def lock(run: Path) -> FileLock:
    """Returns the lock of a run's results, which one process holds at a time."""
    return FileLock(run / LOCK)


@contextlib.contextmanager
def temporary_folder(run: Path) -> Iterator[Path]:
    """Yields a folder for the images of an evaluation, and removes it at the end.

    Folders of killed evaluations are removed, too: the operating system has released their locks.
    """
    with lock(run):
        for folder in run.glob(f"{PREFIX}*/"):
            with contextlib.suppress(Timeout), FileLock(folder / LOCK, blocking=False):
                shutil.rmtree(folder)
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=run))
        in_use = FileLock(folder / LOCK)
        in_use.acquire()
    try:
        images = folder / "images"
        images.mkdir()
        yield images
    finally:
        in_use.release()
        shutil.rmtree(folder)
