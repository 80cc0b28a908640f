"""Sweeps with Optuna: what they look at, what they tell, and without Optuna."""

from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from helpers.command import command
from tilewright.cli import app
from tilewright.runs import listing

SMALL = [
    "trainer=cpu",
    "data.source.train=32",
    "data.source.validation=8",
    "data.source.zeroshot=8",
    "data.batch_size=8",
    "trainer.max_steps=4",
    "trainer.val_check_interval=2",
    "trainer.limit_val_batches=1",
    "~callbacks.frechet",
]


@pytest.fixture
def home(tmp_path):
    return SimpleNamespace(data=tmp_path / "data", logs=tmp_path / "logs")


@pytest.mark.slow
def test_a_sweep_tells_the_best_of_its_runs(home, capsys):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    words = ["stage=dvae", "sweep=learning_rate", "run_name=a", "hydra.sweeper.n_trials=3"]
    assert command("train", [*words, *SMALL], home) is None
    runs = listing.records(home.logs, "dvae")
    assert {run.name for run in runs} == {"dvae/a_0", "dvae/a_1", "dvae/a_2"}
    scores = {run.name: listing.figure(run.best(), run.monitor) for run in runs}
    best = min(runs, key=lambda run: scores[run.name])
    assert len(set(scores.values())) == 3

    (told,) = home.logs.glob("multirun/*/optimization_results.yaml")
    told = OmegaConf.load(told)
    assert told.best_value == pytest.approx(scores[best.name])
    for key in ("model.learning_rate.then.start", "model.learning_rate.steps"):
        assert told.best_params[key] == OmegaConf.select(best.config, key)
    assert f"Best value: {told.best_value}" in capsys.readouterr().out
    # Its settings make the run again, and no sweep.
    assert not any(text.startswith("sweep=") for text in best.config.overrides)
    assert f"model.learning_rate.steps={best.config.model.learning_rate.steps}" in (
        best.config.overrides
    )


@pytest.mark.parametrize(
    ("sweep", "stage"),
    [*(("learning_rate", stage) for stage in ("dvae", "prior", "ranker")), ("prior", "prior")],
)
def test_what_varies_is_there(sweep, stage):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    with initialize_config_dir(str(app.CONF), version_base="1.3"):
        words = [f"stage={stage}", f"sweep={sweep}"]
        config = compose("train", words, return_hydra_config=True)
    assert config.hydra.sweeper.params
    for key in config.hydra.sweeper.params:
        assert isinstance(OmegaConf.select(config, key), int | float)


def test_without_optuna_one_line(home, monkeypatch):
    Plugins.instance()  # which adds its options once
    options = ConfigStore.instance().repo["hydra"]["sweeper"]
    monkeypatch.delitem(options, "optuna.yaml", raising=False)
    said = command("train", ["stage=dvae", "sweep=learning_rate"], home)
    assert said == (
        "error: a sweep needs Optuna, which is not installed: pip install 'tilewright[sweep]'"
    )
