"""Trainings that several tests of this folder compare with."""

import pytest

from helpers.multiprocess import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Returns a function that trains once for each set of arguments, and returns the folder.

    Tests must not change the folder.
    """
    folders = {}

    def get(stage, processes=1, strategy="ddp", **arguments):
        key = repr((stage, processes, strategy, sorted(arguments.items())))
        if key not in folders:
            folder = tmp_path_factory.mktemp(f"{stage}-{processes}")
            train(stage, folder, processes, strategy, **arguments)
            folders[key] = folder
        return folders[key]

    return get
