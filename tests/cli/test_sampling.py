"""Sampling settings of generate, eval and export, on untrained runs."""

import pytest
from omegaconf import OmegaConf

from helpers import untrained
from helpers.command import fail, make_home, run

RED = "prompt=a red circle"


@pytest.fixture
def home(tmp_path):
    untrained.all_stages(tmp_path)
    home = make_home(tmp_path)
    home.prior = home.logs / "prior" / "untrained"
    return home


def set_caption_dropout(prior, value):
    config = OmegaConf.load(prior / "config.yaml")
    OmegaConf.update(config, "model.caption_dropout", value)
    OmegaConf.save(config, prior / "config.yaml")


def test_guidance_and_likelihood_ranker_are_refused_for_a_prior_without_caption_dropout(home):
    set_caption_dropout(home.prior, 0.0)
    model = home.folder / "model"
    run(home, "export", f"run={home.prior}", f"out={model}", "captions=1", "n=1")
    guidance, ranker = "guidance=2", ["n=1", "best_of=2", "ranker=likelihood"]
    for prior in (home.prior, model):
        for arguments, setting in (([guidance], guidance), (ranker, "LikelihoodRanker")):
            line = fail(home, "generate", RED, f"run={prior}", *arguments)
            assert f"{setting} needs a prior that has seen empty captions" in line
            assert "model.caption_dropout=0:" in line
    assert "guidance=2 needs" in fail(home, "eval", "metric=kid", guidance, "images=3")
    line = fail(home, "eval", "metric=best_of", "ranker=likelihood", "images=3")
    assert "LikelihoodRanker needs" in line
    assert not (home.prior / "samples").exists()


def test_guidance_is_possible_after_caption_dropout(home):
    set_caption_dropout(home.prior, 0.1)
    model = home.folder / "model"
    run(home, "export", f"run={home.prior}", f"out={model}", "captions=1", "n=1")
    for prior in (home.prior, model):
        run(home, "generate", RED, f"run={prior}", "guidance=2", "n=1", f"out={home.folder}/out")
