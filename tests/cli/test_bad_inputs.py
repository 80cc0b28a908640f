"""Bad input of every kind: one clear line, a status other than 0, and nothing half written.

The commands run in this process, so that a case takes a fraction of a second; what a whole process
prints is in test_command_line.py.
"""

import io
import json
import shutil
import tarfile
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from omegaconf import OmegaConf
from PIL import Image

from helpers.command import command

DVAE = ["stage=dvae", "trainer=cpu"]
PRIOR = ["stage=prior", "trainer=cpu"]
RED = "prompt=a red circle"
SMALL = [
    "data.source.train=40",
    "data.source.validation=8",
    "data.source.zeroshot=8",
    "data.batch_size=8",
    "trainer.max_steps=1",
    "trainer.limit_val_batches=1",
    "trainer.val_check_interval=1",
    "~callbacks.frechet",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of a dVAE and of a prior, each of one update."""
    folder = tmp_path_factory.mktemp("trained")
    home = SimpleNamespace(data=folder / "data", logs=folder / "logs")
    assert command("train", [*DVAE, *SMALL, "run_name=d"], home) is None
    assert command("train", [*PRIOR, *SMALL, "run_name=p", "~callbacks.samples"], home) is None
    return home


@pytest.fixture
def home(trained, tmp_path):
    """Logs of its own, with copies of both runs, and some files that are no good."""
    shutil.copytree(trained.logs, tmp_path / "logs", symlinks=True)
    home = SimpleNamespace(
        data=trained.data,
        logs=tmp_path / "logs",
        dvae=tmp_path / "logs" / "dvae" / "d",
        prior=tmp_path / "logs" / "prior" / "p",
        files=tmp_path / "files",
        cache=tmp_path,
    )
    home.files.mkdir()
    return home


def picture():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def folder(home, count=4, content=None, captions=True):
    for n in range(count):
        (home.files / f"{n}.png").write_bytes(picture() if content is None else content)
        if captions:
            (home.files / f"{n}.txt").write_text(f"number {n}")


def metadata(home, text):
    folder(home, captions=False)
    (home.files / "metadata.jsonl").write_text(text)


def parquet(home, **columns):
    Dataset.from_dict(columns).to_parquet(home.files / "a.parquet")


def tar(home, *names):
    for split in ("train", "val"):
        with tarfile.open(home.files / f"{split}.tar", "w") as file:
            for name in names:
                file.addfile(tarfile.TarInfo(name), io.BytesIO())


def cut(file, share=0.5):
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])


def change(file, **values):
    config = OmegaConf.load(file)
    for key, value in values.items():
        OmegaConf.update(config, key.replace("__", "."), value)
    OmegaConf.save(config, file)


def weights(home, state):
    saved = torch.load(home.prior / "checkpoints" / "best.ckpt", weights_only=True)
    torch.save({**saved, **state}, home.prior / "checkpoints" / "best.ckpt")


SOURCE = "data.source.path={files}"
FOLDER = [*DVAE, "data=folder", SOURCE]
TAR = [*DVAE, "data=webdataset", SOURCE]
PARQUET = [*DVAE, "data=parquet", SOURCE]
HUB = [*DVAE, "data=hub", "data.source.name={files}"]
BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"

# What it is, the command and its words, what is done beforehand, and words of the line.
CASES = {
    # configuration
    "no stage": ("train", [], None, ["stage=dvae"]),
    "unknown stage": ("train", ["stage=nope"], None, ["stage/nope", "dvae"]),
    "unknown data": ("train", [*DVAE, "data=nope"], None, ["data/nope", "webdataset"]),
    "unknown model": ("train", [*DVAE, "model=nope"], None, ["model/nope", "dvae_small"]),
    "unknown filter": ("train", [*DVAE, "filter=nope"], None, ["filter/nope", "paper"]),
    "unknown key": ("train", [*DVAE, "trainer.nope=3"], None, ["trainer.nope"]),
    "key without a value": ("train", [*DVAE, "trainer.max_steps"], None, ["trainer.max_steps"]),
    "key that must be set": ("train", [*DVAE, "data=folder"], None, ["data.source.path"]),
    "words for a number": ("train", [*DVAE, "data.batch_size=many"], None, ["data", "many"]),
    "batch of none": ("train", [*DVAE, "data.batch_size=0"], None, ["data.batch_size=0"]),
    "negative workers": ("train", [*DVAE, "data.num_workers=-1"], None, ["num_workers=-1"]),
    "negative crops": ("train", [*DVAE, "data.crops_per_image=-1"], None, ["crops_per_image=-1"]),
    "two kinds of crops": (
        "train",
        [*DVAE, "data.crops_per_image=2", "data.augmented_tokens=true"],
        None,
        ["data.crops_per_image", "augmented_tokens"],
    ),
    "split of no rows": ("train", [*DVAE, "data.source.train=0"], None, ["data.source.train=0"]),
    "resume of another model": (
        "train",
        [*DVAE, "resume=true", "model=dvae_paper"],
        None,
        ["model=dvae_small"],
    ),
    "class that is not there": ("train", [*DVAE, "data.source._target_=a.b"], None, ["source"]),
    "a name that is taken": ("train", [*DVAE, "run_name=d"], None, ["resume="]),
    # data
    "no folder": ("train", [*FOLDER[:-1], "data.source.path=/no"], None, ["no folder", "/no"]),
    "empty folder": ("train", FOLDER, None, ["no images"]),
    "no captions": ("train", FOLDER, lambda h: folder(h, captions=False), ["no captions"]),
    "one picture": ("train", FOLDER, lambda h: folder(h, 1), ["too few"]),
    "all pictures broken": ("train", FOLDER, lambda h: folder(h, content=b"x"), ["not an image"]),
    "metadata that is no JSON": ("train", FOLDER, lambda h: metadata(h, "{oh"), ["line 1"]),
    "metadata without names": (
        "train",
        FOLDER,
        lambda h: metadata(h, json.dumps({"caption": "a"})),
        ["file_name"],
    ),
    "no parquet": ("train", PARQUET, None, ["no parquet file"]),
    "parquet that is cut": (
        "train",
        PARQUET,
        lambda h: (parquet(h, image=[picture()], caption=["a"]), cut(h.files / "a.parquet")),
        ["could not be read", "a.parquet"],
    ),
    "no column of captions": (
        "train", PARQUET, lambda h: parquet(h, image=[picture()], text=["a"]), ["caption_column"],
    ),
    "captions that are numbers": (
        "train", PARQUET, lambda h: parquet(h, image=[picture()], caption=[1]), ["no text"],
    ),
    "a data set that is not there": ("train", HUB, None, ["could not be loaded"]),
    "split that is not there": (
        "train",
        [*HUB, "data.source.split=dev"],
        lambda h: Dataset.from_dict({"image": [picture()], "caption": ["a"]}).save_to_disk(h.files),
        ["dev"],
    ),
    "no tar file": ("train", TAR, None, ["no tar file"]),
    "tar that is none": (
        "train", TAR, lambda h: (h.files / "a.tar").write_bytes(b"x" * 2000), ["a tar file"],
    ),
    "tar without captions": ("train", TAR, lambda h: tar(h, "1.jpg", "2.jpg"), ["caption_keys"]),
    "fraction of more than all": (
        "train",
        [*FOLDER, "data.source.validation_fraction=2"],
        folder,
        ["fraction 2"],
    ),
    "filters that keep nothing": (
        "train",
        [*FOLDER, "filter=paper", "data.filters.length.min_words=99", "~data.filters.english"],
        folder,
        ["keep no row", "short caption"],
    ),
    # checkpoints and runs
    "no dVAE": (
        "train",
        PRIOR,
        lambda h: shutil.rmtree(h.logs / "dvae"),
        ["no trained dvae", "stage=dvae"],
    ),
    "dVAE of another size": ("train", [*PRIOR, "data.image_size=16"], None, ["data.image_size=32"]),
    "a prior for a dVAE": ("train", [*PRIOR, "dvae={prior}"], None, ["stage=prior", "stage=dvae"]),
    "resume of nothing": ("train", [*DVAE, "resume=/no"], None, ["no run /no"]),
    "resume of what has ended": ("train", [*DVAE, "resume=true"], None, ["all its 1 step"]),
    "resume from a cut checkpoint": (
        "train",
        [*DVAE, "resume=true", "trainer.max_steps=2"],
        lambda h: cut(h.dvae / LAST),
        ["last.ckpt cannot be read", "after 1 updates", "resume={dvae}/checkpoints/best.ckpt"],
    ),
    "resume where all checkpoints are cut": (
        "train",
        [*DVAE, "resume=true", "trainer.max_steps=2"],
        lambda h: (cut(h.dvae / LAST), cut(h.dvae / BEST)),
        ["last.ckpt cannot be read"],
    ),
    "resume without a checkpoint": (
        "train",
        [*DVAE, "resume={dvae}"],
        lambda h: shutil.rmtree(h.dvae / "checkpoints"),
        ["no checkpoint"],
    ),
    "checkpoint that is cut": (
        "generate", [RED], lambda h: cut(h.prior / BEST), ["best.ckpt cannot be read"],
    ),
    "empty checkpoint": ("generate", [RED], lambda h: cut(h.prior / BEST, 0), ["cannot be read"]),
    "checkpoint without weights": (
        "generate", [RED], lambda h: weights(h, {"state_dict": {}}), ["does not fit"],
    ),
    "checkpoint that runs code": (
        "generate", [RED], lambda h: weights(h, {"hook": shutil.rmtree}), ["cannot be read"],
    ),
    "run of another size": (
        "generate",
        [RED],
        lambda h: change(h.prior / "config.yaml", model__network__dim=64),
        ["does not fit"],
    ),
    "weights that are cut": (
        "generate",
        [RED],
        lambda h: cut(h.prior / "dvae" / "model.safetensors"),
        ["model.safetensors cannot be read"],
    ),
    "no weights": (
        "generate",
        [RED],
        lambda h: (h.prior / "dvae" / "model.safetensors").unlink(),
        ["no model.safetensors"],
    ),
    "tokenizer that is cut": (
        "generate", [RED], lambda h: cut(h.prior / "tokenizer.json"), ["tokenizer.json"],
    ),
    "tokenizer of another size": (
        "generate",
        [RED],
        lambda h: change(h.prior / "config.yaml", tokenizer__vocab_size=256),
        ["tokenizer"],
    ),
    "configuration that is no YAML": (
        "generate",
        [RED],
        lambda h: (h.prior / "config.yaml").write_text("a: [b"),
        ["config.yaml"],
    ),
    "configuration that is empty": (
        "generate", [RED], lambda h: (h.prior / "config.yaml").write_text(""), ["config.yaml"],
    ),
    "configuration of a list": (
        "generate", [RED], lambda h: (h.prior / "config.yaml").write_text("- 1"), ["config.yaml"],
    ),
    "run that would run code": (
        "generate",
        [RED],
        lambda h: change(h.prior / "config.yaml", model__network___target_="os.system"),
        ["os.system", "TILEWRIGHT_TRUST"],
    ),
    "data that would run code": (
        "eval",
        ["metric=reconstruction", "device=cpu"],
        lambda h: change(h.dvae / "config.yaml", data__source={"_target_": "os.system"}),
        ["data.source", "os.system"],
    ),
    "dVAE of another codebook": (
        "generate",
        [RED],
        lambda h: change(h.prior / "config.yaml", model__network__stream__image_vocab=9),
        ["does not fit"],
    ),
    "resume of a model": ("train", [*DVAE, "resume={prior}/dvae"], None, ["no run", "init="]),
    # exporting
    "exporting without a place": ("export", [], None, ["out has no value"]),
    "exporting to where something is": ("export", ["out={files}"], None, ["exists"]),
    "exporting what is not there": ("export", ["out={cache}/m", "run=/no"], None, ["no run /no"]),
    "exporting with no ranker": (
        "export", ["out={cache}/m", "with_ranker=true"], None, ["no trained ranker"],
    ),
    "a ranker for a dVAE": (
        "export", ["out={cache}/m", "run={dvae}", "with_ranker=true"], None, ["stage=dvae"],
    ),
    # places
    "runs where a file is": (
        "train",
        [*DVAE, *SMALL, "paths.logs={files}/0.txt"],
        folder,
        ["0.txt", "cannot be written", "paths.logs"],
    ),
    "data where a file is": (
        "train",
        [*DVAE, *SMALL, "paths.data={files}/0.txt"],
        folder,
        ["0.txt", "cannot be written", "paths.data"],
    ),
    # prompts
    "no prompt": ("generate", [], None, ["prompt="]),
    "no pictures": ("generate", [RED, "n=0"], None, ["n=0"]),
    "no prompts": ("generate", ["prompt=[]"], None, ["prompt"]),
    "a number for a prompt": ("generate", ["prompt=7"], None, ["prompt", "7"]),
    "a mapping for a prompt": ("generate", ["prompt={a: 1}"], None, ["prompt"]),
    "best of too few": ("generate", [RED, "n=3", "best_of=2", "ranker=likelihood"], None, ["best"]),
    "best of without a ranker": ("generate", [RED, "best_of=9"], None, ["stage=ranker"]),
    "picture that is not there": (
        "generate", [RED, "image_prompt=/no.png"], None, ["/no.png"],
    ),
    "picture that is none": (
        "generate", [RED, "image_prompt={files}/0.png"], lambda h: folder(h, 1, b"x"), ["0.png"],
    ),
    "more rows than there are": (
        "generate", [RED, "image_prompt={files}/0.png", "rows=99"], folder, ["rows"],
    ),
    "temperature below zero": ("generate", [RED, "temperature=-1"], None, ["temperature"]),
    "run of no prior": ("generate", [RED, "run={dvae}"], None, ["stage=dvae"]),
    "pictures where a file is": (
        "generate", [RED, "out={files}/0.txt"], folder, ["0.txt"],
    ),
    "pictures at once of none": ("generate", [RED, "batch_size=0"], None, ["batch_size=0"]),
    # devices
    "device that is not there": ("generate", [RED, "device=cuda:9"], None, ["cuda:9", "auto"]),
    "device of no kind": ("eval", ["metric=reconstruction", "device=tpu9"], None, ["device=tpu9"]),
    "precision of no kind": ("train", [*DVAE, "trainer.precision=3"], None, ["3"]),
    "batch that cannot be shared": (
        "train", [*DVAE, "trainer.devices=3", "data.batch_size=32"], None, ["batch_size=32", "3"],
    ),
    # evaluation and encoding
    "unknown metric": ("eval", ["metric=nope"], None, ["metric/nope", "fid"]),
    "metric of another stage": ("eval", ["metric=fid", "run={dvae}"], None, ["stage=dvae"]),
    "encoding without a dVAE": ("encode", ["data=emoji"], None, ["data=emoji", "stage=dvae"]),
    "encoding by no process": ("encode", ["processes=0"], None, ["processes=0"]),
    "encoding a stream": (
        "encode",
        ["dvae={dvae}", "data=webdataset", SOURCE, "data.image_size=32"],
        lambda h: tar(h, "1.jpg", "1.txt", "2.jpg", "2.txt"),
        ["streaming=false"],
    ),
    "encoding a split that is not there": (
        "encode", ["splits=[nope]", *SMALL[:3]], None, ["no split nope"],
    ),
    "encoding where nothing can be written": (
        "encode", ["data.cache={files}/0.txt", *SMALL[:3]], folder, ["cannot be written"],
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def listing(folder):
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {path for path in found if not path.startswith("multirun")}  # Hydra's notes of a sweep


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line(case, home):
    name, words, spoil, expected = CASES[case]
    if spoil is not None:
        spoil(home)
    before = listing(home.logs)
    words = [word.format(**vars(home)) if "={a" not in word else word for word in words]
    said = command(name, words, home)
    assert isinstance(said, str), f"it ended with {said}"  # which python prints; its status is 1
    assert said.startswith("error: ")
    assert "\n" not in said
    for word in expected:
        assert word.format(**vars(home)) in said
    assert listing(home.logs) == before  # nothing that could be taken for a run or its pictures
