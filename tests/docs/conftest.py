"""A small world in which the documentation's commands find what they speak of."""

import shutil
import tarfile

import pytest
import torch
from cleanfid import fid

from helpers import short, untrained
from tilewright.metrics import extractors

TRAINED = [
    "stage=dvae data=folder data.source.path=my/pictures run_name=of_mine",
    "stage=dvae run_name=small",
    "stage=prior run_name=A",
    "stage=prior run_name=B",
    "stage=ranker run_name=chooser",
]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Runs of all stages on shapes and a dVAE on a folder of pictures, all of two updates.

    Beside them what a reader of the pages has: pictures in several forms, a model that somebody
    shares, the files of the released dVAE (a tiny one).
    """
    world = tmp_path_factory.mktemp("world")
    pictures = untrained.pictures(world / "my" / "pictures")
    untrained.pictures(pictures / "validation", 6)
    for name in ("photos", "drawn"):
        untrained.pictures(world / name, 4)
    shutil.copyfile(pictures / "0.png", world / "top.png")
    shards(world / "my" / "shards")
    released(world)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        patch.setattr(extractors, "_answers", lambda url, seconds: False)
        for words in TRAINED:
            assert short.run(["python", "src/train.py", *words.split()]) is None
        words = ["out=models/shapes", "with_ranker=true"]
        assert short.run(["python", "src/export.py", *words]) is None
        words = ["prompt=a large red circle", "n=1", "out=drawn_by_it"]
        assert short.run(["python", "src/generate.py", *words]) is None
    (world / "drawn_by_it" / "grid.png").rename(world / "grid.png")
    shutil.copytree(world / "models" / "shapes", world / "someone" / "mine")
    return world


def shards(folder):
    """Two tar shards of pictures with captions."""
    pictures = untrained.pictures(folder)
    for shard in range(2):
        with tarfile.open(folder / f"{shard:04}.tar", "w") as tar:
            for number in range(15 * shard, 15 * shard + 15):
                for suffix in ("png", "txt"):
                    tar.add(pictures / f"{number}.{suffix}", f"{number}.{suffix}")


def released(folder):
    """The released dVAE's two pickles, with few channels."""
    dall_e = pytest.importorskip("dall_e")
    torch.manual_seed(0)
    sizes = {"n_hid": 8, "n_blk_per_group": 1, "vocab_size": 16}
    torch.save(dall_e.Encoder(**sizes), folder / "encoder.pkl")
    torch.save(dall_e.Decoder(**sizes, n_init=8), folder / "decoder.pkl")


@pytest.fixture
def home(world, tmp_path, monkeypatch):
    """A copy of the world, in which the test is, without the internet.

    Fréchet distances look at the first features only: the root of a matrix of all takes seconds.
    """
    home = tmp_path / "home"
    shutil.copytree(world, home, symlinks=True)
    monkeypatch.chdir(home)
    monkeypatch.setattr(extractors, "_answers", lambda url, seconds: False)
    distance = fid.fid_from_feats
    monkeypatch.setattr(fid, "fid_from_feats", lambda *two: distance(*(x[:, :64] for x in two)))
    return home
