"""A low limit on the number of open files."""

import contextlib
import resource
from pathlib import Path


@contextlib.contextmanager
def limited_open_files(more):
    """Allows this process to open `more` files than it has open now."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = len(list(Path("/proc/self/fd").iterdir())) + more
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
