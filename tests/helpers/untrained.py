"""Runs of every stage with the files of a training and random weights."""

import json

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from tilewright import runs
from tilewright.training import AtomicCheckpointIO

SIZE, GRID, CODES, LENGTH, WORDS = 16, 4, 8, 12, 280  # of images, grid, codebook, text tokens
CAPTIONS = ["a red circle", "a blue ring", "two stars"]
TOKENIZER = {
    "_target_": "tilewright.data.BytePairTokenizer",
    "vocab_size": WORDS,
    "length": LENGTH,
    "dropout": 0.0,
}
NETWORKS = {
    "dvae": {
        "_target_": "tilewright.dvae.DiscreteVAE",
        "image_size": SIZE,
        "grid": GRID,
        "num_tokens": CODES,
        "n_hid": 8,
        "n_init": 8,
        "blocks_per_group": 1,
        "likelihood": {"_target_": "tilewright.dvae.Gaussian", "sigma": 0.1},
    },
    "prior": {
        "_target_": "tilewright.prior.Transformer",
        "stream": {
            "_target_": "tilewright.prior.Stream",
            "text_length": LENGTH,
            "text_vocab": WORDS,
            "grid": GRID,
            "image_vocab": CODES,
        },
        "dim": 16,
        "depth": 2,
        "heads": 2,
    },
    "ranker": {
        "_target_": "tilewright.ranker.DualEncoder",
        "text_vocab": WORDS,
        "text_length": LENGTH,
        "image_size": SIZE,
        "grid": GRID,
        "dim": 16,
        "heads": 2,
        "embedding": 8,
    },
}


def write_images(folder, count=30):
    """Writes a folder of captioned images."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (20, 20), (8 * number, 0, 99)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(CAPTIONS[number % len(CAPTIONS)])
    return folder


def write_run(logs, stage, images):
    """Writes a run on a folder of images, and returns the run's folder."""
    torch.manual_seed(0)
    crop = {"_target_": "tilewright.data.CenterCrop", "size": SIZE}
    source = {"_target_": "tilewright.data.FolderSource", "path": str(images)}
    data = {
        "_target_": "tilewright.data.CaptionedImages",
        "_convert_": "partial",
        "source": {**source, "validation_fraction": 0.3},
        "image_size": SIZE,
        "batch_size": 4,
        "train_transform": crop,
        "eval_transform": crop,
        "tokenizer": None if stage == "dvae" else TOKENIZER,
        "image_tokenizer": {"_target_": "tilewright.runs.load_network", "run": "somewhere"},
        "cache": str(logs / "image_tokens"),
    }
    folder = logs / stage / "untrained"
    config = {
        "stage": stage,
        "choices": {"data": "folder", "model": f"{stage}_tiny"}
        | ({"caption": "joint"} if stage == "prior" else {}),
        "overrides": [f"stage={stage}", f"data.source.path={images}"],
        "run": str(folder),
        "model": {"network": NETWORKS[stage]},
        "data": data,
        "tokenizer": data["tokenizer"],
    }
    runs.create(folder, OmegaConf.create(config))
    network = instantiate(NETWORKS[stage])
    with torch.no_grad():  # at their initial values, captions hardly matter
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    (folder / "checkpoints").mkdir()
    checkpoint = {"state_dict": state, "global_step": 7}
    AtomicCheckpointIO().save_checkpoint(checkpoint, folder / "checkpoints" / "best.ckpt")
    runs.set_latest(folder)
    if stage != "dvae":
        tokenizer = instantiate(TOKENIZER)
        tokenizer.train(CAPTIONS)
        tokenizer.save(folder / runs.TOKENIZER)
    if stage == "prior":
        runs.copy_dvae(folder, logs / "dvae" / "untrained")
        results = folder / "eval" / "fid" / "results.json"
        results.parent.mkdir(parents=True)
        row = {"metric": "fd", "value": 12.34567, "split": "validation", "images": 9}
        results.write_text(json.dumps([{**row, "resize": "clean", "run": str(folder)}]))
    return folder


def all_stages(folder):
    """Writes a run of each stage, and returns the folder of all runs."""
    images = write_images(folder / "images")
    for stage in runs.STAGES:
        write_run(folder / "logs", stage, images)
    return folder / "logs"
