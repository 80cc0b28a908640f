"""Number of updates of a checkpoint, stored where it can be read without torch."""

import zipfile
from pathlib import Path


def write_steps(file: Path, steps: int) -> None:
    """Stores the number of updates as the comment of a checkpoint, which is a zip archive."""
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = str(steps).encode()


def read_steps(file: Path) -> int:
    """Returns the number of updates of a checkpoint, 0 if it is unknown or the file is broken."""
    try:
        with zipfile.ZipFile(file) as archive:
            return int(archive.comment)
    except (OSError, ValueError, zipfile.BadZipFile):
        return 0
