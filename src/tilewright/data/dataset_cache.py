"""Errors of a full disk under the cache of `datasets`."""

import contextlib
import errno
from collections.abc import Iterator

import datasets

from tilewright.errors import UserError, first_line

FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def full_disk_errors() -> Iterator[None]:
    """Converts the error of a full disk to a UserError.

    `datasets` wraps it in its own classes.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = _full_disk(error)
        if cause is None:
            raise
        place = cause.filename or datasets.config.HF_DATASETS_CACHE
        raise UserError(
            f"the data cannot be written to {place} ({cause.strerror or first_line(cause)}): free "
            "space there, or set HF_DATASETS_CACHE, for downloads HF_HUB_CACHE, to a folder on "
            "another disk"
        ) from error


def _full_disk(error: BaseException | None) -> OSError | None:
    """Returns the error of a full disk among the causes of an error, or None."""
    while error is not None:
        # `datasets` compares the size with the free space before it writes.
        is_too_large = str(error).startswith("Not enough disk space")
        if isinstance(error, OSError) and (error.errno in FULL or is_too_large):
            return error
        error = error.__cause__ or error.__context__
    return None
