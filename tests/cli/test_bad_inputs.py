"""Bad input of every kind: one line, a status other than 0, and no partly written files."""

import io
import json
import shutil
import tarfile

import pytest
import torch
from datasets import Dataset
from omegaconf import OmegaConf
from PIL import Image

from helpers.command import SMALL, fail

DVAE = ["stage=dvae", "trainer=cpu"]
PRIOR = ["stage=prior", "trainer=cpu"]
RED = "prompt=a red circle"
OPENAI = ["family=openai_dvae", "family.encoder=a", "family.decoder=b"]


@pytest.fixture
def home(copied, tmp_path):
    """Copies of the runs, and an empty folder for bad files."""
    copied.files, copied.cache = tmp_path / "files", tmp_path
    copied.files.mkdir()
    return copied


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


SOURCE = "data.source.path={files}"
FOLDER = [*DVAE, "data=folder", SOURCE]
TAR = [*DVAE, "data=webdataset", SOURCE]
PARQUET = [*DVAE, "data=parquet", SOURCE]
HUB = [*DVAE, "data=hub", "data.source.name={files}"]
BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"

# name: (command, its arguments, a function that makes the input bad, parts of the message)
CASES = {
    # configuration
    "no stage": ("train", [], None, ["stage= is missing"]),
    "unknown stage": ("train", ["stage=nope"], None, ["stage/nope", "dvae"]),
    "unknown data": ("train", [*DVAE, "data=nope"], None, ["data/nope", "webdataset"]),
    "unknown model": ("train", [*DVAE, "model=nope"], None, ["model/nope", "dvae_small"]),
    "unknown filter": ("train", [*DVAE, "filter=nope"], None, ["filter/nope", "paper"]),
    "unknown key": ("train", [*DVAE, "trainer.nope=3"], None, ["trainer.nope"]),
    "key without a value": ("train", [*DVAE, "trainer.max_steps"], None, ["trainer.max_steps"]),
    "mandatory key": ("train", [*DVAE, "data=folder"], None, ["data.source.path"]),
    "word instead of a number": ("train", [*DVAE, "data.batch_size=many"], None, ["data", "many"]),
    "word as a seed": ("train", [*DVAE, "seed=x"], None, ["seed=x is not a whole number"]),
    "negative seed": ("train", [*DVAE, "seed=-1"], None, ["seed=-1 is not possible"]),
    "fraction as a seed": ("train", [*DVAE, "seed=1.5"], None, ["seed=1.5 is not a whole number"]),
    "no seed": ("train", [*DVAE, "seed=null"], None, ["seed=null is not a whole number"]),
    "no interval of validations": (
        "train",
        [*DVAE, "trainer.val_check_interval=0"],
        None,
        ["trainer.val_check_interval=0"],
    ),
    "null as an option": ("train", [*DVAE, "logger=null"], None, ["null is not an option", "none"]),
    "missing GPU": ("train", ["stage=dvae", "trainer.accelerator=gpu"], None, ["set trainer=cpu"]),
    "empty number of updates": (
        "train",
        [*DVAE, "trainer.max_steps="],
        None,
        ["trainer.max_steps= is not possible"],
    ),
    "word as a flag": (
        "train",
        [*DVAE, "callbacks.health.stop=maybe"],
        None,
        ["callbacks.health.stop=maybe"],
    ),
    "decay above 1": (
        "train",
        [*DVAE, "callbacks.ema.decay=2"],
        None,
        ["error: callbacks.ema.decay=2 is not possible"],
    ),
    "no images shown": (
        "train",
        [*DVAE, "callbacks.reconstructions.count=0"],
        None,
        ["callbacks.reconstructions.count=0"],
    ),
    "width 0": (
        "train",
        [*DVAE, *SMALL[1:4], "model.network.n_hid=0"],
        None,
        ["model.network.n_hid=0 is not possible"],
    ),
    "deviation 0": (
        "train",
        [*DVAE, *SMALL[1:4], "likelihood.sigma=0"],
        None,
        ["likelihood.sigma=0 is not possible"],
    ),
    **{
        f"{argument} of a {stage}": (
            "train",
            [f"stage={stage}", *SMALL[:4], argument],
            None,
            [f"error: {argument} is not possible"],
        )
        for stage, argument in [
            ("prior", "model.network.dim=0"),
            ("prior", "model.network.heads=0"),
            ("prior", "model.network.depth=0"),
            ("prior", "tokenizer.length=0"),
            ("prior", "tokenizer.vocab_size=0"),
            ("ranker", "tokenizer.dropout=2"),
            ("ranker", "model.network.embedding=0"),
            ("dvae", "recoloring.p=2"),
            ("dvae", "model.beta.start=-1"),
            ("dvae", "model.beta.end=nan"),
            ("dvae", "model.temperature.then.end=0"),
        ]
    },
    "epochs": ("train", [*DVAE, "trainer.max_epochs=1"], None, ["set trainer.max_steps"]),
    "key of Lightning": ("train", [*DVAE, "trainer.fast_dev_run=true"], None, ["debug=default"]),
    "unknown key that is added": ("train", [*DVAE, "+foo=3"], None, ["foo is not a key"]),
    "list of options": ("train", ["stage=[dvae]"], None, ["stage=[dvae] is a list: name one"]),
    "model of another stage": (
        "train",
        [*DVAE, "model=prior_small"],
        None,
        ["model=prior_small is a model of stage=prior", "dvae_small"],
    ),
    "word as a flag of the data": (
        "train",
        [*DVAE, "data.augmented_tokens=maybe"],
        None,
        ["data.augmented_tokens=maybe is not possible: set true or false"],
    ),
    "number as a schedule": (
        "train",
        [*DVAE, "model.learning_rate=1"],
        None,
        ["model.learning_rate=1 does not fit", "set one, model.learning_rate."],
    ),
    "negative learning rate": (
        "train",
        [*DVAE, "model.learning_rate.then.start=-1"],
        None,
        ["start=-1 is not possible: set a number of 0 or more"],
    ),
    "negative warm-up": (
        "train",
        [*DVAE, "model.learning_rate.steps=-1"],
        None,
        ["steps=-1 is not possible: set a whole number of 0 or more"],
    ),
    "caption in another encoding": ("generate", ["prompt=\udcff"], None, ["is not valid UTF-8"]),
    "list as a device": ("generate", [RED, "device=[cpu]"], None, ["device=['cpu'] is not one"]),
    "no number of processes": ("encode", ["processes=null"], None, ["processes=null is not a"]),
    "word as a list": ("encode", ["splits=train"], None, ["not a list: write splits=[train]"]),
    "no folder for a model": ("export", ["out=null"], None, ["out has no value"]),
    "word as trust": (
        "convert",
        [*OPENAI, "out={cache}/m", "trust=yes"],
        None,
        ["trust=yes is not possible: set true or false"],
    ),
    "converted model in the place of a run": (
        "convert",
        [*OPENAI, "out={dvae}", "trust=true"],
        None,
        ["exists: name another folder"],
    ),
    "batch size 0": ("train", [*DVAE, "data.batch_size=0"], None, ["data.batch_size=0"]),
    "negative workers": ("train", [*DVAE, "data.num_workers=-1"], None, ["num_workers=-1"]),
    "negative crops": ("train", [*DVAE, "data.crops_per_image=-1"], None, ["crops_per_image=-1"]),
    "two kinds of crops": (
        "train",
        [*DVAE, "data.crops_per_image=2", "data.augmented_tokens=true"],
        None,
        ["data.crops_per_image", "augmented_tokens"],
    ),
    "empty split": ("train", [*DVAE, "data.source.train=0"], None, ["data.source.train=0"]),
    "resume with another model": (
        "train",
        [*DVAE, "resume=true", "model=dvae_paper"],
        None,
        ["model=dvae_small"],
    ),
    "missing class": ("train", [*DVAE, "data.source._target_=a.b"], None, ["source"]),
    "run to train": ("train", [*DVAE, "run=logs/x"], None, ["run= is filled in", "run_name=NAME"]),
    "image tokens to train on": (
        "train",
        ["stage=prior", "image_tokens.grid=8"],
        None,
        ["image_tokens.grid= is filled in by training", "dvae=PATH"],
    ),
    "home folder of nobody": (
        "train",
        [*DVAE, "paths.logs=~no_such_user/logs"],
        None,
        ["paths.logs=~no_such_user/logs begins with ~ and names no user"],
    ),
    "address of a bucket": (
        "train",
        [*DVAE, "paths.logs=s3://bucket/logs"],
        None,
        ["paths.logs=s3://bucket/logs is an address"],
    ),
    "sweep of several processes": (
        "train",
        [*DVAE, "trainer.devices=2", "seed=0,1", "-m"],
        None,
        ["a sweep trains each run in one process", "trainer.devices"],
    ),
    "name that is too long": (
        "train",
        [*DVAE, f"run_name={'x' * 300}", *SMALL],
        None,
        ["File name too long"],
    ),
    "run name that exists": ("train", [*DVAE, "run_name=first"], None, ["exists", "resume="]),
    "empty run name": ("train", [*DVAE, "run_name="], None, ["run_name= is empty"]),
    "empty run to resume": ("train", [*DVAE, "resume="], None, ["resume= is empty"]),
    "empty run to start from": ("train", [*DVAE, "init="], None, ["init= is empty"]),
    "empty dVAE": ("train", [*PRIOR, "dvae="], None, ["dvae= is empty"]),
    "empty run": ("generate", [RED, "run="], None, ["run= is empty"]),
    "empty folder of images": ("generate", [RED, "out="], None, ["out= is empty"]),
    "new name of a resumed run": (
        "train",
        [*DVAE, "resume=true", "run_name=other"],
        None,
        ["run_name=other cannot rename", "leave run_name out"],
    ),
    "metric of training": (
        "train",
        [*DVAE, "resume=true", "trainer.max_steps=9", "monitor=train/loss"],
        None,
        ["monitor=train/loss is not measured at validations"],
    ),
    "number as a learning rate": (
        "train",
        [*DVAE, "model.learning_rate=1e-3"],
        None,
        ["set one, model.learning_rate.then.start=…"],
    ),
    "float as a number of updates": (
        "train",
        [*DVAE, "trainer.max_steps=1e1"],
        None,
        ["trainer.max_steps=10.0 is not possible", "(write 10)"],
    ),
    "no caption in training": (
        "train",
        [*PRIOR, "model.caption_dropout=1"],
        None,
        ["model.caption_dropout=1 empties every caption"],
    ),
    "heads that do not divide the width": (
        "train",
        [*PRIOR, "model.network.heads=3", "model.network.dim=32"],
        None,
        ["dim=32 is not a multiple of heads=3"],
    ),
    "run name outside of the logs": (
        "train",
        [*DVAE, "run_name=../../escape"],
        None,
        ["run_name=../../escape is not possible"],
    ),
    "run name with a slash": ("train", [*DVAE, "run_name=a/b"], None, ["without /"]),
    "run name of the newest run's file": (
        "train",
        [*DVAE, "run_name=latest"],
        None,
        ["not 'latest'"],
    ),
    # data
    "missing folder": (
        "train",
        [*FOLDER[:-1], "data.source.path=/no"],
        None,
        ["is not a folder", "/no"],
    ),
    "empty folder": ("train", FOLDER, None, ["no images"]),
    "no captions": ("train", FOLDER, lambda h: write_images(h, captions=False), ["no captions"]),
    "a single image": ("train", FOLDER, lambda h: write_images(h, 1), ["too few"]),
    "only broken images": (
        "train",
        FOLDER,
        lambda h: write_images(h, broken=True),
        ["not an image"],
    ),
    "metadata that is not JSON": ("train", FOLDER, lambda h: write_metadata(h, "{oh"), ["line 1"]),
    "metadata without file names": (
        "train",
        FOLDER,
        lambda h: write_metadata(h, json.dumps({"caption": "a"})),
        ["file_name"],
    ),
    "missing parquet file": ("train", PARQUET, None, ["no parquet file"]),
    "truncated parquet file": (
        "train",
        PARQUET,
        lambda h: (write_parquet(h, image=[png()], caption=["a"]), truncate(h.files / "a.parquet")),
        ["cannot be read", "a.parquet"],
    ),
    "missing caption column": (
        "train",
        PARQUET,
        lambda h: write_parquet(h, image=[png()], text=["a"]),
        ["caption_column"],
    ),
    "numbers as captions": (
        "train",
        PARQUET,
        lambda h: write_parquet(h, image=[png()], caption=[1]),
        ["no text"],
    ),
    "missing data set": ("train", HUB, None, ["cannot be loaded"]),
    "missing split": (
        "train",
        [*HUB, "data.source.split=dev"],
        lambda h: Dataset.from_dict({"image": [png()], "caption": ["a"]}).save_to_disk(h.files),
        ["dev"],
    ),
    "missing tar file": ("train", TAR, None, ["no tar file"]),
    "file that is not a tar archive": (
        "train",
        TAR,
        lambda h: (h.files / "a.tar").write_bytes(b"x" * 2000),
        ["a tar file"],
    ),
    "tar archive without captions": (
        "train",
        TAR,
        lambda h: write_tars(h, "1.jpg", "2.jpg"),
        ["caption_keys"],
    ),
    "fraction above 1": (
        "train",
        [*FOLDER, "data.source.validation_fraction=2"],
        write_images,
        ["fraction=2"],
    ),
    "filters that remove everything": (
        "train",
        [*FOLDER, "filter=paper", "data.filters.length.min_words=99", "~data.filters.english"],
        write_images,
        ["keep no row", "short caption"],
    ),
    # checkpoints and runs
    "missing dVAE": (
        "train",
        PRIOR,
        lambda h: shutil.rmtree(h.logs / "dvae"),
        ["no trained dvae", "stage=dvae"],
    ),
    "images without a size": (
        "train",
        [*DVAE, "data.image_size=null"],
        None,
        ["data.image_size=null is not possible"],
    ),
    "encoding of images without a size": (
        "encode",
        ["data.image_size=null"],
        None,
        ["data.image_size=null is not possible"],
    ),
    "dVAE of another size": ("train", [*PRIOR, "data.image_size=16"], None, ["data.image_size=32"]),
    "prior instead of a dVAE": (
        "train",
        [*PRIOR, "dvae={prior}"],
        None,
        ["stage=prior", "stage=dvae"],
    ),
    "resume a missing run": ("train", [*DVAE, "resume=/no"], None, ["no run /no"]),
    "resume a finished run": ("train", [*DVAE, "resume=true"], None, ["all its 6 updates"]),
    "resume from a truncated checkpoint": (
        "train",
        [*DVAE, "resume=true", "trainer.max_steps=2"],
        lambda h: truncate(h.dvae / LAST),
        ["last.ckpt cannot be read", "resume={dvae}/checkpoints/best.ckpt continues after"],
    ),
    "resume with only truncated checkpoints": (
        "train",
        [*DVAE, "resume=true", "trainer.max_steps=2"],
        lambda h: (truncate(h.dvae / LAST), truncate(h.dvae / BEST)),
        ["last.ckpt cannot be read"],
    ),
    "resume without a checkpoint": (
        "train",
        [*DVAE, "resume={dvae}"],
        lambda h: shutil.rmtree(h.dvae / "checkpoints"),
        ["no checkpoint"],
    ),
    "truncated checkpoint": (
        "generate",
        [RED],
        lambda h: truncate(h.prior / BEST),
        ["best.ckpt cannot be read"],
    ),
    "empty checkpoint": (
        "generate",
        [RED],
        lambda h: truncate(h.prior / BEST, 0),
        ["cannot be read"],
    ),
    "checkpoint without weights": (
        "generate",
        [RED],
        lambda h: change_checkpoint(h, {"state_dict": {}}),
        ["do not fit the network"],
    ),
    "checkpoint that runs code": (
        "generate",
        [RED],
        lambda h: change_checkpoint(h, {"hook": shutil.rmtree}),
        ["cannot be read"],
    ),
    "run of another size": (
        "generate",
        [RED],
        lambda h: change_config(h.prior / "config.yaml", model__network__dim=64),
        ["do not fit the network"],
    ),
    "truncated weights": (
        "generate",
        [RED],
        lambda h: truncate(h.prior / "dvae" / "model.safetensors"),
        ["model.safetensors cannot be read"],
    ),
    "missing weights": (
        "generate",
        [RED],
        lambda h: (h.prior / "dvae" / "model.safetensors").unlink(),
        ["no model.safetensors"],
    ),
    "truncated tokenizer": (
        "generate",
        [RED],
        lambda h: truncate(h.prior / "tokenizer.json"),
        ["tokenizer.json"],
    ),
    "tokenizer of another size": (
        "generate",
        [RED],
        lambda h: change_config(h.prior / "config.yaml", tokenizer__vocab_size=256),
        ["tokenizer"],
    ),
    "configuration that is not YAML": (
        "generate",
        [RED, "run={prior}"],
        lambda h: (h.prior / "config.yaml").write_text("a: [b"),
        ["config.yaml cannot be read"],
    ),
    "empty configuration": (
        "generate",
        [RED, "run={prior}"],
        lambda h: (h.prior / "config.yaml").write_text(""),
        ["config.yaml is not a run's configuration"],
    ),
    "configuration that is a list": (
        "generate",
        [RED, "run={prior}"],
        lambda h: (h.prior / "config.yaml").write_text("- 1"),
        ["config.yaml is not a run's configuration"],
    ),
    "run that would run code": (
        "generate",
        [RED],
        lambda h: change_config(h.prior / "config.yaml", model__network___target_="os.system"),
        ["os.system", "TILEWRIGHT_TRUST"],
    ),
    "data that would run code": (
        "eval",
        ["metric=reconstruction", "device=cpu"],
        lambda h: change_config(h.dvae / "config.yaml", data__source={"_target_": "os.system"}),
        ["data.source", "os.system"],
    ),
    "dVAE of another codebook": (
        "generate",
        [RED],
        lambda h: change_config(h.prior / "config.yaml", model__network__stream__image_vocab=9),
        ["do not fit the network"],
    ),
    "resume an exported model": (
        "train",
        [*DVAE, "resume={prior}/dvae"],
        None,
        ["cannot be resumed", "init="],
    ),
    # exporting
    "export without a folder": ("export", [], None, ["out has no value"]),
    "export to an existing folder": ("export", ["out={files}"], None, ["exists"]),
    "export a missing run": ("export", ["out={cache}/m", "run=/no"], None, ["no run /no"]),
    "export without a ranker": (
        "export",
        ["out={cache}/m", "with_ranker=true"],
        remove_rankers,
        ["no trained ranker"],
    ),
    "export a dVAE with a ranker": (
        "export",
        ["out={cache}/m", "run={dvae}", "with_ranker=true"],
        None,
        ["stage=dvae"],
    ),
    # folders
    "logs folder that is a file": (
        "train",
        [*DVAE, *SMALL, "paths.logs={files}/0.txt"],
        write_images,
        ["0.txt", "cannot be written"],
    ),
    "data folder that is a file": (
        "train",
        [*DVAE, *SMALL, "paths.data={files}/0.txt"],
        write_images,
        ["0.txt", "cannot be written"],
    ),
    # prompts
    "missing prompt": ("generate", [], None, ["prompt= is missing"]),
    "zero images": ("generate", [RED, "n=0"], None, ["n=0"]),
    "best of fewer than n": (
        "generate",
        [RED, "n=3", "best_of=2", "ranker=likelihood"],
        None,
        ["best"],
    ),
    "best of without a ranker": ("generate", [RED, "best_of=9"], remove_rankers, ["stage=ranker"]),
    "missing image prompt": (
        "generate",
        [RED, "image_prompt=/no.png"],
        None,
        ["cannot read the image /no.png (image file is missing)"],
    ),
    "image prompt that is not an image": (
        "generate",
        [RED, "image_prompt={files}/0.png"],
        lambda h: write_images(h, 1, b"x"),
        ["0.png"],
    ),
    "rows without an image prompt": ("generate", [RED, "rows=3"], None, ["rows=3 needs an image"]),
    "too many rows of an image prompt": (
        "generate",
        [RED, "image_prompt={files}/0.png", "rows=99"],
        write_images,
        ["rows"],
    ),
    "column without a file": (
        "generate",
        [RED, "caption_column=a"],
        None,
        ["caption_column=a needs a file: set prompts=FILE"],
    ),
    **{
        f"{argument} without candidates": (
            "generate",
            [RED, argument],
            None,
            [f"{argument} ranks nothing: set best_of=N"],
        )
        for argument in ("ranker=likelihood", "ranker.run=/no")
    },
    **{
        f"{argument} of a dVAE": (
            "export",
            ["out={cache}/m", "run={dvae}", argument],
            None,
            [f"{argument.partition('=')[0]}= needs a prior"],
        )
        for argument in ("n=2", "captions=2", RED)
    },
    "export of no caption": (
        "export",
        ["out={cache}/m", "captions=0"],
        None,
        ["captions=0 is not possible"],
    ),
    "export of captions of two kinds": (
        "export",
        ["out={cache}/m", RED, "captions=2"],
        None,
        ["prompt= and captions= are both set"],
    ),
    "sampling as an option": (
        "export",
        ["out={cache}/m", "sampling=paper"],
        None,
        ["sampling.temperature=1 sampling.guidance=1"],
    ),
    "data without a name": (
        "eval",
        ["metric=fid", "data.source.validation=20"],
        None,
        ["add data=NAME"],
    ),
    "negative temperature": ("generate", [RED, "temperature=-1"], None, ["temperature"]),
    "run of another stage": ("generate", [RED, "run={dvae}"], None, ["stage=dvae"]),
    "output folder that is a file": (
        "generate",
        [RED, "out={files}/0.txt"],
        write_images,
        ["0.txt"],
    ),
    "generation batch of size 0": ("generate", [RED, "batch_size=0"], None, ["batch_size=0"]),
    "word as a number of images": ("generate", [RED, "n=two"], None, ["n=two is not", "n=8"]),
    "list as a number of images": ("generate", [RED, "n=[1,2]"], None, ["n=[1, 2] is not"]),
    "several runs": ("generate", [RED, "run=a", "run=b"], None, ["run= is set more than once"]),
    "list as a run": (
        "eval",
        ["metric=fid", "run={dvae},{prior}"],
        None,
        ["there is no run", "(for several, repeat the key: run={dvae} run={prior})"],
    ),
    "word as a scale": ("eval", ["metric=alignment", "guidance=x"], None, ["guidance=x is not"]),
    # demo
    "word as a port": ("demo", ["port=x"], None, ["port=x is not a whole number"]),
    "port above the limit": ("demo", ["port=99999"], None, ["port=99999 is not possible"]),
    "no image to show": ("demo", ["n=0"], None, ["n=0 is not possible"]),
    "no row of an image": ("demo", ["rows=0"], None, ["rows=0 is not possible"]),
    "page of a negative temperature": (
        "demo",
        ["temperature=-1"],
        None,
        ["temperature=-1 is not possible"],
    ),
    # devices
    "device without values": ("generate", [RED, "device=meta"], None, ["device=meta", "auto"]),
    "missing device": ("generate", [RED, "device=cuda:9"], None, ["cuda:9", "auto"]),
    "unknown device": ("eval", ["metric=reconstruction", "device=tpu9"], None, ["device=tpu9"]),
    "unknown precision": (
        "train",
        [*DVAE, "trainer.precision=3"],
        None,
        ["trainer.precision=3 is not possible", "bf16-mixed"],
    ),
    "batch that processes cannot share": (
        "train",
        [*DVAE, "trainer.devices=3", "data.batch_size=32"],
        None,
        ["data.batch_size=32", "divided by 3"],
    ),
    # evaluation and encoding
    "ranker of another metric": (
        "eval",
        ["metric=fid", "ranker.run={ranker}"],
        None,
        ["ranker.run= has no effect on metric=fid"],
    ),
    "resize of another metric": (
        "eval",
        ["metric=alignment,retrieval", "resize=legacy_pytorch"],
        None,
        ["resize= has no effect on metric=alignment,retrieval"],
    ),
    "setting of one metric among several": (
        "eval",
        ["metric=alignment,fid", "resize=legacy_pytorch", "images=0"],
        None,
        ["images=0 is not possible"],
    ),
    "data of a command without a dataset": (
        "generate",
        [RED, "data.source.path=x"],
        None,
        ["data is not a key"],
    ),
    "no image to measure": (
        "eval",
        ["metric=fid", "images=0"],
        None,
        ["images=0 is not possible"],
    ),
    "file in the place of results": (
        "eval",
        ["metric=reconstruction"],
        lambda h: write_file(h.dvae / "eval" / "reconstruction"),
        ["eval/reconstruction is a file in the place of a folder: move or delete it"],
    ),
    "file in the place of all results": (
        "eval",
        ["metric=reconstruction"],
        lambda h: write_file(h.dvae / "eval"),
        ["first/eval is a file in the place of a folder: move or delete it"],
    ),
    "unknown metric": ("eval", ["metric=nope"], None, ["metric/nope", "fid"]),
    "metric of another stage": ("eval", ["metric=fid", "run={dvae}"], None, ["stage=dvae"]),
    "encode without a dVAE": ("encode", ["data=emoji"], None, ["data=emoji", "stage=dvae"]),
    "encode with 0 processes": ("encode", ["processes=0"], None, ["processes=0"]),
    "word as a number of processes": ("encode", ["processes=x"], None, ["processes=x is not a"]),
    "encode a streaming data set": (
        "encode",
        ["dvae={dvae}", "data=webdataset", SOURCE, "data.image_size=32"],
        lambda h: write_tars(h, "1.jpg", "1.txt", "2.jpg", "2.txt"),
        ["streaming=false"],
    ),
    "encode a missing split": (
        "encode",
        ["splits=[nope]", *SMALL[1:4]],
        None,
        ["no split nope"],
    ),
    "encode into a file": (
        "encode",
        ["data.cache={files}/0.txt", *SMALL[1:4]],
        write_images,
        ["cannot be written"],
    ),
}


@pytest.fixture(autouse=True)
def no_network(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def files_of(folder):
    """Returns the paths below a folder, except the empty locks of evaluations."""
    paths = {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != ".eval.lock"
    }
    return {path for path in paths if not path.startswith("multirun")}  # Hydra's files of a sweep


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_writes_nothing(case, home):
    name, arguments, make_bad, expected = CASES[case]
    if make_bad is not None:
        make_bad(home)
    before = files_of(home.logs)
    arguments = [word.format(**vars(home)) for word in arguments]
    line = fail(home, name, *arguments)
    for part in expected:
        assert part.format(**vars(home)) in line
    assert files_of(home.logs) == before  # nothing that could be taken for a run or its images
