"""Bad input of every kind, and the check that a command refuses it."""

import io
import shutil
import tarfile

import torch
from datasets import Dataset
from omegaconf import OmegaConf
from PIL import Image

from helpers.command import fail

DVAE = ["stage=dvae", "trainer=cpu"]
PRIOR = ["stage=prior", "trainer=cpu"]
RED = "prompt=a red circle"
SOURCE = "data.source.path={files}"
FOLDER = [*DVAE, "data=folder", SOURCE]
TAR = [*DVAE, "data=webdataset", SOURCE]
PARQUET = [*DVAE, "data=parquet", SOURCE]
HUB = [*DVAE, "data=hub", "data.source.name={files}"]
BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"


def png(level=0):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (level, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write_images(home, count=4, broken=False, captions=True):
    for index in range(count):
        (home.files / f"{index}.png").write_bytes(bytes([index]) if broken else png(index))
        if captions:
            (home.files / f"{index}.txt").write_text(f"number {index}")


def write_metadata(home, text):
    write_images(home, captions=False)
    (home.files / "metadata.jsonl").write_text(text)


def write_parquet(home, **columns):
    Dataset.from_dict(columns).to_parquet(home.files / "a.parquet")


def write_tars(home, *names):
    for split in ("train", "val"):
        with tarfile.open(home.files / f"{split}.tar", "w") as file:
            for name in names:
                file.addfile(tarfile.TarInfo(name), io.BytesIO())


def write_file(path):
    path.parent.mkdir(exist_ok=True)
    path.write_text("not a folder")


def truncate(file, share=0.5):
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def change_config(file, **values):
    config = OmegaConf.load(file)
    for key, value in values.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    OmegaConf.save(config, file)


def change_checkpoint(home, state):
    saved = torch.load(home.prior / "checkpoints" / "best.ckpt", weights_only=True)
    torch.save({**saved, **state}, home.prior / "checkpoints" / "best.ckpt")


def remove_rankers(home):
    shutil.rmtree(home.logs / "ranker")


def files_of(folder):
    """Returns the paths below a folder, except the empty locks of evaluations."""
    paths = {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != ".eval.lock"
    }
    return {path for path in paths if not path.startswith("multirun")}  # Hydra's files of a sweep


def assert_refused(home, command, arguments, make_bad, expected):
    """Checks that a command ends with one line and writes no files of a run.

    Args:
        home: folders of the runs and `home.files`, a folder for bad files.
        command: name of the command.
        arguments: its arguments, in which `{files}` and other attributes of `home` are replaced.
        make_bad: function of `home` that makes the input bad, or None.
        expected: parts of the line.
    """
    if make_bad is not None:
        make_bad(home)
    before = files_of(home.logs)
    line = fail(home, command, *(word.format(**vars(home)) for word in arguments))
    for part in expected:
        assert part.format(**vars(home)) in line
    assert files_of(home.logs) == before  # nothing that could be taken for a run or its images
