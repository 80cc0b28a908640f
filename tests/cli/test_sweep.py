"""Sweeps with Optuna: search space, best settings, failed trials, and a missing Optuna."""

import sys
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from helpers.command import command
from hydra_plugins import tilewright_optuna_sweeper as sweeper
from tilewright.cli import app
from tilewright.errors import UserError
from tilewright.runs import environment, listing

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


def results(home):
    (path,) = home.logs.glob("multirun/*/optimization_results.yaml")
    return OmegaConf.load(path)


@pytest.mark.slow
def test_sweep_saves_the_best_settings_of_its_runs(home, capsys):
    pytest.importorskip("optuna")
    words = ["stage=dvae", "sweep=learning_rate", "run_name=a", "hydra.sweeper.n_trials=3"]
    assert command("train", [*words, *SMALL], home) is None
    runs = listing.records(home.logs, "dvae")
    assert {run.name for run in runs} == {"dvae/a_0", "dvae/a_1", "dvae/a_2"}
    scores = {run.name: listing.metric(run.validation_row(), run.monitor) for run in runs}
    best = min(runs, key=lambda run: scores[run.name])
    assert len(set(scores.values())) == 3

    saved = results(home)
    assert saved.best_value == pytest.approx(scores[best.name])
    for key in ("model.learning_rate.then.start", "model.learning_rate.steps"):
        assert saved.best_params[key] == OmegaConf.select(best.config, key)
    assert f"Best value: {saved.best_value}" in capsys.readouterr().out
    # The recorded settings repeat the run and not the sweep.
    assert not any(text.startswith("sweep=") for text in best.config.overrides)
    assert f"model.learning_rate.steps={best.config.model.learning_rate.steps}" in (
        best.config.overrides
    )


def test_each_job_of_a_sweep_records_the_command_of_its_own_run(home):
    words = ["stage=dvae", "run_name=a", "--multirun", *SMALL, "trainer.max_steps=1"]
    assert command("train", [*words, "seed=3,4"], home) is None
    for number, seed in enumerate((3, 4)):
        (entry,) = environment.load(home.logs / "dvae" / f"a_{number}")
        assert entry["command"].startswith("python src/train.py paths.data=")
        assert entry["command"].endswith(f" seed={seed}")
        assert "multirun" not in entry["command"]


@pytest.mark.parametrize(
    ("sweep", "stage"),
    [*(("learning_rate", stage) for stage in ("dvae", "prior", "ranker")), ("prior", "prior")],
)
def test_search_space_consists_of_numeric_settings(sweep, stage):
    with initialize_config_dir(str(app.CONF), version_base="1.3"):
        words = [f"stage={stage}", f"sweep={sweep}"]
        config = compose("train", words, return_hydra_config=True)
    assert config.hydra.sweeper.params
    for key in config.hydra.sweeper.params:
        assert isinstance(OmegaConf.select(config, key), int | float)


def test_search_space_of_every_kind_of_override():
    distributions = pytest.importorskip("optuna.distributions")
    space, fixed = sweeper.search_space(
        [
            "a=interval(0.5,2)",
            "b=tag(log,int(interval(1,64)))",
            "c=range(2,10,4)",
            "d=range(0.0,1.0,0.25)",
            "e=choice(small,large,3)",
            "f='two words',null",
            "g=interval(0,1)",
            "g=0.5",
            "~callbacks.frechet",
            "+extra=1",
            "+new=interval(0,1)",
            "h=interval(0,1)",
            "++h=interval(0,2)",
            "data@first=choice(x,y)",
            "data@second=choice(x,y)",
        ]
    )
    assert space == {
        "a": distributions.FloatDistribution(0.5, 2.0),
        "b": distributions.IntDistribution(1, 64, log=True),
        "c": distributions.IntDistribution(2, 6, step=4),
        "d": distributions.FloatDistribution(0.0, 0.75, step=0.25),
        "e": distributions.CategoricalDistribution(["small", "large", 3]),
        "f": distributions.CategoricalDistribution(["'two words'", "null"]),
        "+new": distributions.FloatDistribution(0.0, 1.0),
        "++h": distributions.FloatDistribution(0.0, 2.0),
        "data@first": distributions.CategoricalDistribution(["x", "y"]),
        "data@second": distributions.CategoricalDistribution(["x", "y"]),
    }
    assert fixed == ["g=0.5", "~callbacks.frechet", "+extra=1"]


@pytest.mark.parametrize(("sampler", "name"), [("tpe", "TPESampler"), ("random", "RandomSampler")])
def test_samplers_can_be_built(sampler, name):
    pytest.importorskip("optuna")
    with initialize_config_dir(str(app.CONF), version_base="1.3"):
        words = ["stage=dvae", "sweep=optuna", f"hydra/sweeper/sampler={sampler}"]
        config = compose("train", words, return_hydra_config=True)
    assert type(instantiate(config.hydra.sweeper.sampler)).__name__ == name


class Jobs:
    """Launcher whose jobs return or raise the next of some results."""

    def __init__(self, results):
        self.results = list(results)
        self.numbers = []

    def launch(self, overrides, initial_job_idx):
        self.numbers.append(initial_job_idx)
        result = self.results.pop(0)
        if isinstance(result, SystemExit):
            raise result
        failed = isinstance(result, Exception)
        status = sweeper.JobStatus.FAILED if failed else sweeper.JobStatus.COMPLETED
        return [SimpleNamespace(status=status, _return_value=result)]


def sweep(folder, results, **settings):
    sampler = {"_target_": "optuna.samplers.RandomSampler", "seed": 0}
    settings = {"direction": "minimize", "n_trials": len(results), "max_failures": 3} | settings
    made = sweeper.OptunaSweeper(OmegaConf.create(sampler), **settings)
    made.folder = folder
    made.launcher = Jobs(results)
    made.sweep(["rate=interval(0.0,1.0)"])
    return made.launcher


def test_failed_trial_is_one_line_and_the_sweep_continues(tmp_path, caplog):
    pytest.importorskip("optuna")
    errors = [SystemExit("error: loss is nan"), RuntimeError("no memory\nat all")]
    sweep(tmp_path, [*errors, None, 2.0], max_failures=4)
    lines = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert lines == [
        "Trial 0 failed: loss is nan",
        "Trial 1 failed: RuntimeError: no memory",
        "Trial 2 failed: the monitored metric is None",
    ]


def test_sweep_ends_after_failures_in_a_row(tmp_path):
    pytest.importorskip("optuna")
    error = SystemExit("error: no such data")
    with pytest.raises(UserError, match="2 trials in a row failed: no such data"):
        sweep(tmp_path, [error, 1.0, error, error, 1.0], max_failures=2)
    assert OmegaConf.load(tmp_path / "optimization_results.yaml").best_value == 1


def test_sweep_without_a_successful_trial_is_an_error(tmp_path):
    pytest.importorskip("optuna")
    with pytest.raises(UserError, match="all 2 trials failed"):
        sweep(tmp_path, [SystemExit("error: x")] * 2)


def test_interrupt_ends_the_sweep(tmp_path):
    pytest.importorskip("optuna")
    with pytest.raises(SystemExit) as end:
        sweep(tmp_path, [SystemExit(130), 1.0])
    assert end.value.code == 130


def test_stored_study_continues_with_new_job_numbers(tmp_path):
    pytest.importorskip("optuna")
    stored = {"study_name": "rates", "storage": f"sqlite:///{tmp_path / 'rates.db'}"}
    assert sweep(tmp_path, [3.0, 1.0], **stored).numbers == [0, 1]
    assert sweep(tmp_path, [2.0], **stored).numbers == [2]
    assert OmegaConf.load(tmp_path / "optimization_results.yaml").best_value == 1


def test_maximize(tmp_path):
    pytest.importorskip("optuna")
    sweep(tmp_path, [1.0, 3.0, 2.0], direction="maximize")
    assert OmegaConf.load(tmp_path / "optimization_results.yaml").best_value == 3


def test_sweep_in_which_nothing_varies_is_an_error(home):
    pytest.importorskip("optuna")
    end = command("train", ["stage=dvae", "sweep=optuna"], home)
    assert end.startswith("error: nothing varies in this sweep: add KEY='choice(A,B)'")


def test_missing_optuna_is_one_line(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    end = command("train", ["stage=dvae", "sweep=learning_rate"], home)
    assert end == (
        "error: Optuna is not installed, and sweep= needs it: pip install 'tilewright[sweep]'"
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["callbacks.best.mode=max", "monitor=validation/x"], "direction=minimize does not fit"),
        (["hydra.sweeper.direction=maximize"], "does not fit callbacks.best.mode=min"),
        (["callbacks.best=null"], "callbacks.best=null disables it"),
        (["trainer.limit_val_batches=0"], "trainer.limit_val_batches=0 disables it"),
    ],
)
def test_sweep_without_a_best_value_in_its_direction_ends_before_a_training(
    home, settings, expected
):
    pytest.importorskip("optuna")
    words = ["stage=dvae", "sweep=learning_rate", "hydra.sweeper.max_failures=1"]
    assert expected in command("train", [*words, *SMALL, *settings], home)
    assert not (home.logs / "dvae").exists()


def test_impossible_settings_of_a_search_are_refused(tmp_path):
    pytest.importorskip("optuna")
    with pytest.raises(UserError, match=r"rate=interval\(1\.0, ?0\.0\) cannot be searched"):
        sweeper.search_space(["rate=interval(1.0,0.0)"])
    for name in ("n_trials", "max_failures"):
        with pytest.raises(UserError, match=rf"hydra\.sweeper\.{name}=null is not possible"):
            sweep(tmp_path, [1.0], **{name: None})
    with pytest.raises(UserError, match="direction=max is not possible"):
        sweep(tmp_path, [1.0], direction="max")
    with pytest.raises(UserError, match="storage=nothing cannot be opened"):
        sweep(tmp_path, [1.0], storage="nothing")


def test_stored_study_keeps_its_direction(tmp_path):
    pytest.importorskip("optuna")
    stored = {"study_name": "rates", "storage": f"sqlite:///{tmp_path / 'rates.db'}"}
    sweep(tmp_path, [3.0], **stored)
    with pytest.raises(UserError, match="the study rates has direction=minimize"):
        sweep(tmp_path, [1.0], direction="maximize", **stored)
