"""Shards of a cache on disk, which several processes fill at the same time.

A shard file exists only when it is complete. Each process takes the next shard that no other
process is encoding, also on another machine that shares the disk.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from rich import get_console
from rich.progress import Progress

from tilewright.errors import UserError

OPEN_SHARDS = 256  # mapped files of a process, which may often open 1,024

Advance = Callable[[int], None]


def encode_shards(
    folder: Path,
    items: int,
    size: int,
    encode: Callable[[Path, range, Advance], None],
    kind: str,
    label: str | None,
) -> None:
    """Writes the shards that a folder lacks, or waits for the processes that write them.

    Args:
        folder: folder of the shards.
        items: number of items of all shards, such as rows.
        size: number of items of a shard.
        encode: writes the file of a range of items, and reports its progress to `Advance`.
        kind: name of the content, such as "image tokens", for messages.
        label: name of the items in the progress bar. None shows no bar.

    Raises:
        UserError: the folder cannot be written.
    """
    ranges = [range(first, min(first + size, items)) for first in range(0, items, size)]
    shards = {shard_file(folder, index): shard for index, shard in enumerate(ranges)}
    if all(file.exists() for file in shards):
        return
    # A log file would get blank lines instead of a bar.
    is_visible = label is not None and get_console().is_terminal
    with write_errors(folder, kind), Progress(transient=True, disable=not is_visible) as progress:
        folder.mkdir(parents=True, exist_ok=True)
        bar = progress.add_task(f"Encoding {label} to {kind}", total=items)
        # The first pass takes free shards. The second waits for the shards of other processes,
        # and encodes those that they did not finish.
        for wait in (False, True):
            for file, shard in shards.items():
                with lock_file(file, wait) as locked:
                    if locked:
                        completed = sum(len(s) for f, s in shards.items() if f.exists())
                        progress.update(bar, completed=completed)
                        encode(file, shard, partial(progress.advance, bar))


def shard_file(folder: Path, shard: int) -> Path:
    """Returns the path of a shard."""
    return folder / f"{shard:05}.npy"


@lru_cache(maxsize=OPEN_SHARDS)
def map_shard(path: Path) -> np.ndarray:
    """Maps a shard to memory.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read: delete it to encode it again") from error


@contextlib.contextmanager
def lock_file(file: Path, wait: bool) -> Iterator[bool]:
    """Locks a missing file or folder, and yields True if this process must write it.

    Args:
        wait: wait for a process that holds the lock. Otherwise yield False.
    """
    if file.exists():
        yield False
        return
    # The operating system releases the lock of a killed process.
    lock = FileLock(file.with_name(f".{file.name}.lock"))
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        yield False
        return
    try:
        yield not file.exists()
    finally:
        lock.release()
        # Safe to delete: a process that waits for this lock finds the complete file.
        Path(lock.lock_file).unlink(missing_ok=True)


@contextlib.contextmanager
def write_errors(folder: Path, kind: str) -> Iterator[None]:
    """Converts errors of the file system to a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{kind} cannot be written to {folder} ({error.strerror or error}): free "
            "space there, or set data.cache; finished shards are kept"
        ) from error
