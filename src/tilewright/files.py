"""Files and folders that are either complete or absent."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from tilewright.errors import UserError

LOCK = ".lock"


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which replaces `path` when the block succeeds.

    A process that is killed leaves the old file or the new one, never a part. Only one process may
    write to a path at a time.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    if temporary.is_symlink():  # a stranger's folder may hold a link to another file
        temporary.unlink()
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, exclusive: bool = False) -> Iterator[Path]:
    """Yields a temporary folder beside `path`, which is renamed to `path` when the block succeeds.

    Several processes may make the same folder at the same time. The first one wins.

    Args:
        exclusive: True if the folder of another process cannot replace this one.

    Raises:
        OSError: `path` cannot be written.
        UserError: another process has made an exclusive folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            _sync(file)
        try:
            temporary.rename(path)
        except OSError as error:
            if not path.is_dir():
                raise
            if exclusive:
                raise UserError(
                    f"another process has made {path} in the meantime: name another folder"
                ) from error


@contextlib.contextmanager
def locked_folder(folder: Path, in_use: str, advice: str) -> Iterator[None]:
    """Locks a folder for one process, and creates it if needed.

    The operating system releases the lock of a killed process. A folder that was created and is
    empty at the end is removed.

    Args:
        in_use: message for the case that another process holds the lock.
        advice: what to do if the folder cannot be written or locked.

    Raises:
        UserError: another process holds the lock, or the folder cannot be written or locked.
    """
    file_lock, existed = FileLock(folder / LOCK), folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file_lock.acquire(blocking=False)
    except Timeout as error:
        raise UserError(in_use) from error
    except (OSError, NotImplementedError) as error:  # the latter on file systems without locks
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{folder} cannot be written or locked ({reason}): {advice}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
            if not existed:
                folder.rmdir()  # fails if files are in the folder
        file_lock.release()


def is_locked(lock_file: Path) -> bool:
    """Returns True if another process holds a lock, or if the file of the lock cannot be opened."""
    try:
        with FileLock(lock_file, blocking=False):
            return False
    except (OSError, NotImplementedError):  # also `Timeout`, if the lock is held
        return True


def _sync(file: Path) -> None:
    """Waits until a file is on the disk. It would otherwise be empty after a power failure."""
    if file.is_file() and not file.is_symlink():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())


def absolute_folder(name: str) -> str:
    """Returns the absolute path of a folder, and any other name, such as one on the Hub, as it is.

    A relative path names another folder, or a model on the Hub, in another working directory.
    """
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else name


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file that is complete or absent, also when the process is killed."""
    with atomic_file(path) as temporary:
        data = content.encode() if isinstance(content, str) else content
        temporary.write_bytes(data)


def check_not_linked(path: Path) -> None:
    """Checks that a path in a stranger's folder is not a symbolic link, which may lead to any file.

    The Hugging Face Hub's cache links to its own files.

    Raises:
        UserError: the path is a link.
    """
    if path.is_symlink() and not _is_in_hub_cache(path):
        raise UserError(f"{path} is a symbolic link: replace it with a copy of its target")


def _is_in_hub_cache(link: Path) -> bool:
    """Returns True for a link below `snapshots/` to a file in `blobs/` beside that folder."""
    blobs = [path.parent / "blobs" for path in link.absolute().parents if path.name == "snapshots"]
    return any(not path.is_symlink() and link.resolve().parent == path.resolve() for path in blobs)
