"""Small project in which the documentation's commands find the files that they name."""

import shutil
import tarfile

import pytest
import torch
from cleanfid import fid

from helpers import pretrained, public_priors, short, untrained
from tilewright.metrics import extractors

TRAINED = [
    "stage=dvae data=folder data.source.path=my/images run_name=of_mine",
    "stage=dvae run_name=small",
    "stage=prior run_name=A",
    "stage=prior run_name=B",
    "stage=ranker run_name=chooser",
]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """Project with runs of all stages on shapes and a dVAE on a folder of images.

    Each run has two updates. There are also images in several formats, a shared model, and a tiny
    version of the files of OpenAI's dVAE.
    """
    world = tmp_path_factory.mktemp("world")
    images = untrained.write_images(world / "my" / "images")
    (world / "my" / "pictures").symlink_to("images")
    untrained.write_images(images / "validation", 6)
    for name in ("photos", "generated"):
        untrained.write_images(world / name, 4)
    shutil.copyfile(images / "0.png", world / "top.png")
    write_shards(world / "my" / "shards")
    write_released_dvae(world)
    write_public_tokenizers(world)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        patch.setattr(extractors, "_host_answers", lambda url, seconds: False)
        for words in TRAINED:
            assert short.run(["python", "src/train.py", *words.split()]) is None
        words = ["out=models/shapes", "with_ranker=true"]
        assert short.run(["python", "src/export.py", *words]) is None
        words = ["prompt=a large red circle", "n=1", "out=drawn_by_it"]
        assert short.run(["python", "src/generate.py", *words]) is None
    (world / "drawn_by_it" / "grid.png").rename(world / "grid.png")
    shutil.copytree(world / "models" / "shapes", world / "someone" / "mine")
    return world


def write_shards(folder):
    """Writes two tar shards of images with captions."""
    images = untrained.write_images(folder)
    for shard in range(2):
        with tarfile.open(folder / f"{shard:04}.tar", "w") as tar:
            for index in range(15 * shard, 15 * shard + 15):
                for suffix in ("png", "txt"):
                    tar.add(images / f"{index}.{suffix}", f"{index}.{suffix}")


def write_released_dvae(folder):
    """Writes the two pickles of OpenAI's dVAE, with few channels."""
    dall_e = pytest.importorskip("dall_e")
    torch.manual_seed(0)
    sizes = {"n_hid": 8, "n_blk_per_group": 1, "vocab_size": 16}
    torch.save(dall_e.Encoder(**sizes), folder / "encoder.pkl")
    torch.save(dall_e.Decoder(**sizes, n_init=8), folder / "decoder.pkl")


def write_public_tokenizers(folder):
    """Writes tiny image tokenizers in the formats of other projects, under the names of theirs."""
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("taming")
    from parity import vq_references as references

    kinds = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
    network = diffusers.VQModel(
        block_out_channels=(32,) * 5, **{key: (kind,) * 5 for key, kind in kinds.items()}
    )
    network.save_pretrained(folder / "amused" / "amused-256" / "vqvae")
    references.LlamaGenVQ(256, ch_mult=(1,) * 5).write(folder / "vq_ds16_t2i.pt")
    vqgan = references.TamingVQGAN(256, [16], ch_mult=[1] * 5)
    vqgan.write(folder)
    write_public_priors(folder, references.CODES)
    torch.save({"state_dict": vqgan.state_dict()}, folder / "minDALL-E/1.3B/stage1_last.ckpt")


def write_public_priors(folder, codes):
    """Writes tiny priors and a text encoder of other projects, under the names of theirs."""
    sizes = {"dim": 64, "depth": 1, "heads": 1, "image_vocab": codes, "grid": 16}
    encoder = folder / "google" / "flan-t5-xl"
    encoder.mkdir(parents=True)
    pretrained.save_t5(encoder, dim=16)
    (folder / "google" / "flan-t5-base").symlink_to("flan-t5-xl")
    llamagen = {**sizes, "text_length": 12, "features": 16}
    public_priors.write_llamagen(folder / "t2i_XL_stage1_256.pt", llamagen)
    mindalle = {**sizes, "text_length": 12, "text_vocab": 40}
    public_priors.write_mindalle(folder / "minDALL-E" / "1.3B", sizes=mindalle)


@pytest.fixture
def home(world, tmp_path, monkeypatch):
    """Copy of the project as the current folder, without the internet.

    Fréchet distances use the first 64 features only, because the matrix root of all takes seconds.
    """
    home = tmp_path / "home"
    shutil.copytree(world, home, symlinks=True)
    monkeypatch.chdir(home)
    monkeypatch.setattr(extractors, "_host_answers", lambda url, seconds: False)
    distance = fid.fid_from_feats
    monkeypatch.setattr(fid, "fid_from_feats", lambda *two: distance(*(x[:, :64] for x in two)))
    return home
