"""Members of a tar file, read in order."""

import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from datasets.utils.file_utils import xopen

BROKEN_SHARD = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


class MissingEndError(tarfile.TarError):
    """Raised at the end of a tar file without an end marker, which some writers omit."""


class CheckedTarInfo(tarfile.TarInfo):
    """Header of a member. A broken header is an error.

    `tarfile` treats a broken header as the end of the file, except the first one.
    """

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "CheckedTarInfo":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            if tar.offset == 0:
                raise
            if isinstance(error, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
                raise MissingEndError("end-of-archive marker is missing") from error
            raise tarfile.ReadError(f"unexpected end of data, {error}") from error


def read_members(file: str) -> Iterator[tuple[str, IO[bytes]]]:
    """Yields the paths and open contents of the files in a tar file.

    Args:
        file: path or address. Any compression of `tarfile` is recognized.

    Raises:
        MissingEndError: all members are read, but the file may be truncated between two members.
    """
    options: dict[str, Any] = {"block_size": 0}  # reads addresses without a buffer, in order
    with xopen(file, "rb", **options) as content:
        tar = tarfile.open(fileobj=content, mode="r|*", tarinfo=CheckedTarInfo)  # noqa: SIM115
        for member in tar:
            data = tar.extractfile(member) if member.isreg() else None
            if data is not None:
                yield member.name, data
            tar.members = []  # type: ignore[attr-defined]  # else all headers stay in memory
