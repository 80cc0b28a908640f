"""A small world in which the documentation's commands find what they speak of."""

import shutil

import pytest

import short
import untrained
from tilewright.metrics import extractors

TRAINED = [
    "stage=dvae data=folder data.source.path=my/pictures run_name=mine",
    "stage=dvae run_name=A",
    "stage=prior run_name=A",
    "stage=ranker run_name=A",
]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Runs of all stages on shapes and a dVAE on a folder of pictures, all of two updates."""
    world = tmp_path_factory.mktemp("world")
    untrained.pictures(world / "my" / "pictures")
    untrained.pictures(world / "my" / "pictures" / "validation", 6)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        patch.setattr(extractors, "_answers", lambda url, seconds: False)
        for words in TRAINED:
            assert short.run(["python", "src/train.py", *words.split()]) is None
        words = ["out=models/shapes", "with_ranker=true"]
        assert short.run(["python", "src/export.py", *words]) is None
    for stage in ("dvae", "prior"):
        shutil.copytree(world / "logs" / stage / "A", world / "logs" / stage / "B")
    return world


@pytest.fixture
def home(world, tmp_path, monkeypatch):
    """A copy of the world, in which the test is, without the internet."""
    home = tmp_path / "home"
    shutil.copytree(world, home, symlinks=True)
    monkeypatch.chdir(home)
    monkeypatch.setattr(extractors, "_answers", lambda url, seconds: False)
    return home
