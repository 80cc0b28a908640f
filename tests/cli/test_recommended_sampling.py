"""Recommended sampling: chosen by training, default of all commands, and part of a model."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from helpers.command import PROMPT, SMALL, fail, results, run
from tilewright import TextToImage, runs
from tilewright.cli import app
from tilewright.prior import Sampling

SHAPES = Sampling(temperature=0.5, guidance=1.5)
NO_CALLBACKS = ["~callbacks.frechet", "~callbacks.samples"]


def composed(name, *overrides):
    with initialize_config_dir(str(app.CONF), version_base="1.3"):
        return compose(name, [*overrides])


def used(home, tmp_path, *arguments):
    """Returns the sampling that generate records."""
    folder = tmp_path / "images"
    run(home, "generate", f"prompt={PROMPT}", "n=1", f"out={folder}", *arguments)
    return Sampling(**json.loads((folder / "pictures.json").read_text())["sampling"])


def forget_sampling(folder):
    """Removes the recommended sampling of a run, as in runs that have none."""
    config = OmegaConf.load(folder / "config.yaml")
    del config.sampling, config.model.sampling
    OmegaConf.save(config, folder / "config.yaml")


def test_training_recommends_what_was_measured_for_the_data():
    for data in ("shapes", "emoji"):
        config = composed("train", "stage=prior", f"data={data}")
        assert instantiate(config.sampling) == SHAPES
    folder = composed("train", "stage=prior", "data=folder", "data.source.path=x")
    assert instantiate(folder.sampling) == Sampling()
    assert "sampling" not in composed("train", "stage=dvae")


def test_the_sampling_of_the_paper_is_an_option():
    assert instantiate(composed("generate", "sampling=paper", "prompt=x").sampling) == Sampling()


def test_a_run_has_its_recommended_sampling(trained):
    assert runs.load_sampling(trained.prior) == SHAPES
    assert "recommended sampling.temperature=0.5" in trained.stdout["prior"]
    assert TextToImage.from_run(trained.prior).sampling == SHAPES


def test_generate_samples_as_recommended_unless_a_key_is_set(copied, tmp_path):
    assert used(copied, tmp_path) == SHAPES
    assert used(copied, tmp_path, "temperature=1") == Sampling(temperature=1, guidance=1.5)
    more = ["top_k=4", "guidance=1", "weights=bfloat16"]
    assert used(copied, tmp_path, *more) == Sampling(0.5, top_k=4, weights="bfloat16")
    assert used(copied, tmp_path, "sampling=paper") == Sampling()
    assert used(copied, tmp_path, "sampling=paper", "top_p=0.5") == Sampling(top_p=0.5)


def test_a_run_without_a_recommendation_samples_as_the_paper(copied, tmp_path):
    forget_sampling(copied.prior)
    assert TextToImage.from_run(copied.prior).sampling == Sampling()
    assert used(copied, tmp_path) == Sampling()


@pytest.mark.parametrize(
    ("arguments", "expected"), [([], SHAPES), (["sampling=paper"], Sampling())]
)
def test_eval_records_the_numbers_that_it_samples_with(copied, arguments, expected):
    run(copied, "eval", "metric=alignment", "images=4", *arguments)
    for row in results(copied.prior, "alignment"):
        assert Sampling(**{key: row[key] for key in vars(expected)}) == expected


def test_a_model_carries_the_sampling_that_its_export_recommends(copied, tmp_path):
    same, other = tmp_path / "same", tmp_path / "other"
    arguments = ["prompt=a", "n=1"]
    run(copied, "export", f"out={same}", *arguments)
    run(copied, "export", f"out={other}", "sampling.temperature=0.7", *arguments)
    assert runs.load_sampling(same) == SHAPES
    assert TextToImage.from_pretrained(other).sampling == Sampling(0.7, guidance=1.5)
    assert "temperature=0.7 top_k=null" in (other / "README.md").read_text()
    assert used(copied, tmp_path, f"run={other}") == Sampling(0.7, guidance=1.5)
    again = tmp_path / "again"
    run(copied, "export", f"run={other}", f"out={again}", "sampling.top_k=3", *arguments)
    assert runs.load_sampling(again) == Sampling(0.7, top_k=3, guidance=1.5)


def test_an_export_with_impossible_sampling_leaves_no_files(copied, tmp_path):
    out = tmp_path / "out"
    line = fail(copied, "export", f"out={out}", "prompt=a", "sampling.temperature=-1")
    assert "temperature=-1" in line
    line = fail(copied, "export", f"out={out}", f"run={copied.dvae}", "sampling.guidance=1")
    assert "sampling.guidance= needs a prior" in line
    assert list(tmp_path.glob("*out*")) == []


def test_a_resumed_run_takes_another_recommendation(copied):
    arguments = ["resume=true", "stage=prior", "trainer.max_steps=7", "sampling.temperature=0.7"]
    run(copied, "train", *arguments)
    assert runs.load_sampling(copied.prior) == Sampling(0.7, guidance=1.5)
    assert runs.load_config(copied.prior).model.sampling.temperature == 0.7


def test_no_guidance_is_recommended_without_caption_dropout(copied):
    new = ["stage=prior", "run_name=new", "model.caption_dropout=0", *SMALL, *NO_CALLBACKS]
    line = fail(copied, "train", *new, "sampling.guidance=2")
    assert "sampling.guidance=2 needs a prior" in line
    run(copied, "train", *new)
    assert runs.load_sampling(copied.logs / "prior" / "new") == Sampling(0.5)


def test_a_strangers_sampling_builds_nothing_else(copied, tmp_path):
    for target in ("os.system", "tilewright.prior.Transformer"):
        forget_sampling(copied.prior)
        config = OmegaConf.load(copied.prior / "config.yaml")
        config.sampling = {"_target_": target, "dim": 8}
        config.model.sampling = {}
        OmegaConf.save(config, copied.prior / "config.yaml")
        assert target in fail(copied, "generate", f"prompt={PROMPT}", f"out={tmp_path}/x")
    assert not Path(tmp_path, "x").exists()
