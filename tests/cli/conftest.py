"""Runs of all stages that the commands have made, and copies of them."""

import shutil
from types import SimpleNamespace

import pytest

from helpers.process import FRECHET, SAMPLES, SMALL, run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A dVAE, a prior on it and a ranker, and what the commands printed. Nobody changes them."""
    home = tmp_path_factory.mktemp("trained")
    dvae = run(home, "train", "stage=dvae", "run_name=first", FRECHET, *SMALL)
    prior = run(home, "train", "stage=prior", FRECHET, *SAMPLES, *SMALL)
    run(home, "train", "stage=ranker", "run_name=ranker", *SMALL)
    said = {"dvae": dvae.stdout, "prior": prior.stdout}
    return SimpleNamespace(said=said, **vars(places(home)))


def places(home):
    return SimpleNamespace(
        folder=home,
        dvae=home / "logs" / "dvae" / "first",
        prior=(home / "logs" / "prior" / "latest").resolve(),
        ranker=home / "logs" / "ranker" / "ranker",
    )


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the runs, to go on with, to measure and to draw from."""
    home = tmp_path / "home"
    shutil.copytree(trained.folder / "logs", home / "logs", symlinks=True)
    (home / "data").symlink_to(trained.folder / "data")
    return places(home)
