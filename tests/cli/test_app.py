"""Hydra application: help texts, settings, and folders of jobs."""

import re

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from helpers.command import command, fail
from tilewright.cli import app, settings
from tilewright.errors import UserError

HELP = {
    "train": ["stage: dvae, prior, ranker", "data: ", "shapes", "trainer: auto, cpu, ddp, "],
    "eval": ["metric: ", "clip_score, fid, identification, is, kid"],
    "generate": ["prompt=", "image_prompt=", "top_k=", "guidance="],
    "encode": ["processes=", "data: "],
    "export": ["with_ranker=", "license="],
    "convert": ["trust=true", "family: ", "openai_dvae"],
    "demo": ["best_of=", "port="],
    "runs": ["compare="],
}


@pytest.mark.parametrize("name", HELP)
def test_help_shows_examples_and_options(name, capsys):
    assert command(name, ["--help"]) in {None, 0}
    out = capsys.readouterr().out
    for text in [f"python src/{name}.py", *HELP[name]]:
        assert text in out
    assert "_base" not in out


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("train", "callbacks caption data debug experiment filter likelihood logger lora loss "
         "model stage sweep tokenizer trainer"),
        ("eval", "data debug metric ranker sampling"),
        ("encode", "caption data filter"),
    ],
)  # fmt: skip
def test_help_lists_the_groups_of_the_command(name, groups, capsys):
    assert command(name, ["--help"]) in {None, 0}
    listed = re.findall(r"^(\w+): ", capsys.readouterr().out, flags=re.M)
    assert listed == groups.split()


def test_check_complete_names_the_key_without_a_value():
    with pytest.raises(UserError, match=r"b\.c has no value: set it on the command line, b\.c=…"):
        settings.check_complete(OmegaConf.create({"a": 1, "b": {"c": "???"}}))


def test_eval_accepts_the_name_of_a_data_set(home):
    """`data` is a config group too, so that `data=emoji` could be taken for its override."""
    line = fail(home, "eval", "metric=reconstruction", "data=emoji")
    assert line.startswith(f"error: no trained dvae in {home.logs}/dvae/ for data=emoji")


@pytest.mark.parametrize(("name", "key"), [("train", "run_name"), ("generate", "hydra.sweep.dir")])
def test_jobs_that_start_in_the_same_second_have_different_folders(name, key):
    with initialize_config_dir(str(app.CONF), version_base="1.3"):
        names = {OmegaConf.select(compose(name, return_hydra_config=True), key) for _ in range(3)}
    assert len(names) == 3
