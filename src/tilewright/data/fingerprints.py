"""Fingerprints of image files and of code, for keys of cached results."""

import contextlib
import hashlib
import inspect
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset


def fingerprint_files(table: Dataset) -> str:
    """Returns a hash of the state of the images that are separate files, or "" without such images.

    The bytes are not hashed, because reading them takes as long as encoding the images.
    """
    # Without a copy, and before the rows are selected, which would read the bytes.
    if not any(len(_paths(chunk)) for chunk in table.data.column("image").chunks):
        return ""
    digest = hashlib.sha256()
    for batch in table.select_columns("image").with_format("arrow").iter(1000):
        for path in _paths(batch.column("image").combine_chunks()).to_pylist():
            digest.update(f"{path}\0{file_state(path)}\0".encode())
    return digest.hexdigest()


def _paths(images: pa.StructArray) -> pa.Array:
    """Returns the paths of the images that are separate files."""
    return images.field("path").filter(images.field("bytes").is_null()).drop_null()


def file_state(path: str | Path) -> tuple[int, int, int] | None:
    """Returns the size, modification time and change time of a file, or None if there is no file.

    No command can set the change time, so `touch -r` does not hide a replaced file.
    """
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def fingerprint_code(*objects: Any) -> str:
    """Returns a hash of the source files of modules, and of those that define objects' classes."""
    names: set[str] = set()
    for value in objects:
        is_module = inspect.ismodule(value)
        names |= (
            {value.__name__} if is_module else {base.__module__ for base in type(value).__mro__}
        )
    digest = hashlib.sha256()
    for name in sorted(names - {"builtins"}):
        with contextlib.suppress(OSError, TypeError, KeyError):  # no source, as in an extension
            digest.update(inspect.getsource(sys.modules[name]).encode())
    return digest.hexdigest()
