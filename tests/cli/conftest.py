"""Runs of all stages that the commands have made, and copies of them."""

import shutil

import pytest

from helpers.command import SMALL, make_home, run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A dVAE, a prior on it and a ranker, and their training's stdout. No test changes them."""
    home = make_home(tmp_path_factory.mktemp("trained"))
    frechet = "callbacks.frechet.images=4"
    samples = ["callbacks.samples.count=2", "callbacks.samples.candidates=1"]
    home.stdout = {
        "dvae": run(home, "train", "stage=dvae", "run_name=first", frechet, *SMALL),
        "prior": run(
            home, "train", "stage=prior", "run_name=first", "~callbacks.frechet", *samples, *SMALL
        ),
        "ranker": run(home, "train", "stage=ranker", "run_name=first", *SMALL),
    }
    return home


@pytest.fixture
def copied(trained, tmp_path):
    """Copies of the runs, to resume, to measure and to generate from."""
    home = make_home(tmp_path / "home")
    shutil.copytree(trained.logs, home.logs, symlinks=True)
    home.data.symlink_to(trained.data)
    return home


@pytest.fixture
def home(tmp_path):
    """Empty folders for data and runs."""
    return make_home(tmp_path)
