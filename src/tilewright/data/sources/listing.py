"""Listing of the files below a folder, shared by all sources that search a folder."""

import heapq
import logging
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from tilewright.text_files import is_unicode

log = logging.getLogger(__name__)

# Folders of thumbnails, metadata and deleted files, in lower case.
SYSTEM_FOLDERS = {
    "__macosx",
    "@eadir",
    "@recycle",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "system volume information",
    "lost+found",
}


@dataclass(frozen=True)
class Listing:
    """Files below a folder, at any depth.

    Attributes:
        root: the folder.
        files: files to use, sorted by path.
        hidden: files that are hidden or lie in a hidden or system folder, sorted by path.
    """

    root: Path
    files: list[Path]
    hidden: list[Path]

    def select(self, suffixes: Collection[str]) -> list[Path]:
        """Returns the files with one of the suffixes, in lower or upper case.

        One line of the log counts the hidden files that are left out.
        """
        hidden = [file for file in self.hidden if file.suffix.lower() in suffixes]
        if hidden:
            log.info(
                "%d file(s) in %s are hidden or in a system folder and left out, such as %r",
                len(hidden), self.root, str(hidden[0].relative_to(self.root)),
            )  # fmt: skip
        return [file for file in self.files if file.suffix.lower() in suffixes]


def list_files(root: Path) -> Listing:
    """Lists the files below a folder.

    Links to files and to folders are followed. Each folder is read once, by its own path rather
    than by a link. A link to a folder that contains the link is a loop and is not followed. Pipes
    and devices are left out. Warnings count the folders that cannot be read, and the names that are
    not Unicode, which a dataset cannot store.
    """
    files: list[Path] = []
    hidden_files: list[Path] = []
    failures: list[OSError] = []
    misnamed: list[str] = []
    visited: set[str] = set()
    queue = [(False, False, root)]  # heap of (hidden, is a link, folder), in reading order
    while queue:
        hidden, _, folder = heapq.heappop(queue)
        real = os.path.realpath(folder)
        if real in visited:
            continue
        visited.add(real)
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            failures.append(error)
            continue
        for entry in entries:
            path, is_link = folder / entry.name, entry.is_symlink()
            if not is_unicode(entry.name):
                misnamed.append(entry.path)
                continue
            hides = hidden or is_hidden(entry.name)
            # Unlike Path.is_dir, this never raises, for example for a link to a closed folder.
            if os.path.isdir(path) if is_link else entry.is_dir():  # noqa: PTH112
                if not (is_link and Path(real).is_relative_to(path.resolve())):
                    heapq.heappush(queue, (hides, is_link, path))
            elif is_link or entry.is_file():  # a broken link is counted when its image is read
                (hidden_files if hides else files).append(path)
    if failures:
        log.warning(
            "%d folder(s) in %s cannot be read and are left out, such as %r (%s)",
            len(failures), root, str(failures[0].filename), failures[0].strerror,
        )  # fmt: skip
    if misnamed:
        log.warning(
            "%d name(s) in %s are not Unicode and are left out, such as %r: rename them",
            len(misnamed), root, min(misnamed),
        )  # fmt: skip
    return Listing(root, sorted(files), sorted(hidden_files))


def is_hidden(name: str) -> bool:
    """Returns True for the name of a hidden file or folder, or of a system folder."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS
