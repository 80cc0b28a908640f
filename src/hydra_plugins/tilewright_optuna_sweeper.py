"""Hydra sweeper that chooses the settings of each run with Optuna.

Hydra finds sweepers only in the namespace package `hydra_plugins`. It imports them at every start,
so Optuna is imported when a sweep begins.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from tilewright.checks import check_option, check_whole
from tilewright.errors import UserError, first_line
from tilewright.files import write_atomically

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

log = logging.getLogger(__name__)

RESULTS = "optimization_results.yaml"


class OptunaSweeper(Sweeper):
    """Runs `n_trials` jobs, one after the other, and saves the best settings.

    A failed job is reported in one line, and the sweep continues with other settings.

    Args:
        sampler: config of an Optuna sampler.
        direction: "minimize" or "maximize" the value that the job returns.
        n_trials: number of jobs.
        max_failures: number of failed jobs in a row that ends the sweep.
        study_name: name of the study in `storage`. Trials are added to an existing study.
        storage: database URL, or None to keep the study in memory.
        params: search space by config key, in Hydra's syntax. The command line overrides it.
    """

    def __init__(
        self,
        sampler: DictConfig,
        direction: str,
        n_trials: int,
        max_failures: int,
        study_name: str | None = None,
        storage: str | None = None,
        params: DictConfig | None = None,
    ) -> None:
        self.sampler = sampler
        self.direction = direction
        self.n_trials = n_trials
        self.max_failures = max_failures
        self.study_name = study_name
        self.storage = storage
        self.params = OmegaConf.create({}) if params is None else params

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Prepares the launcher, which runs a job."""
        self.folder = Path(config.hydra.sweep.dir)
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Runs the trials.

        Raises:
            UserError: Optuna is not installed, a setting is not possible, nothing varies, or too
                many trials failed.
        """
        try:
            import optuna
        except ModuleNotFoundError as error:
            raise UserError(
                "Optuna is not installed, and sweep= needs it: pip install 'tilewright[sweep]'"
            ) from error

        check_whole("hydra.sweeper.n_trials", self.n_trials)
        check_whole("hydra.sweeper.max_failures", self.max_failures)
        space, fixed = search_space(
            [*(f"{key!s}={value}" for key, value in self.params.items()), *arguments]
        )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = self._open_study()
        failed_in_a_row = 0
        for _ in range(self.n_trials):
            try:
                trial = study.ask(space)
            except ValueError as error:  # an option was added to a study
                raise UserError(
                    f"the study {self.study_name} has another search space ({first_line(error)}): "
                    "set another hydra.sweeper.study_name"
                ) from error
            overrides = [*fixed, *(f"{key}={value}" for key, value in trial.params.items())]
            try:
                study.tell(trial, self._run(trial.number, overrides))
                failed_in_a_row = 0
                self._save_best(study)
            except TrialError as error:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                log.warning(f"Trial {trial.number} failed: {error}")
                failed_in_a_row += 1
                if failed_in_a_row == self.max_failures:
                    raise UserError(f"{failed_in_a_row} trials in a row failed: {error}") from error
        if not study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
            raise UserError(f"all {self.n_trials} trials failed: see the lines above")
        log.info(f"Best parameters: {study.best_params}")
        log.info(f"Best value: {study.best_value}")

    def _open_study(self) -> "optuna.Study":
        """Creates the study, or opens that of `storage`.

        Raises:
            UserError: the direction is not possible or is not that of the study, or the storage
                cannot be opened.
        """
        import optuna

        check_option("hydra.sweeper.direction", self.direction, ("minimize", "maximize"))
        sampler = instantiate(self.sampler)
        try:
            study = optuna.create_study(
                study_name=self.study_name,
                storage=self.storage,
                sampler=sampler,
                direction=self.direction,  # type: ignore[arg-type]
                load_if_exists=True,
            )
        except Exception as error:  # databases raise errors of many classes
            raise UserError(
                f"hydra.sweeper.storage={self.storage} cannot be opened ({first_line(error)}): set "
                "a database such as sqlite:///study.db"
            ) from error
        saved = study.direction.name.lower()
        if saved != self.direction:  # Optuna ignores the requested one
            raise UserError(
                f"the study {self.study_name} has direction={saved}: set "
                f"hydra.sweeper.direction={saved}, or another hydra.sweeper.study_name"
            )
        return study

    def _run(self, number: int, overrides: Sequence[str]) -> float:
        """Runs one job and returns its value. The trial's number is unique in a study.

        Raises:
            TrialError: the job failed, or its value is not a number.
        """
        try:
            (job,) = self.launcher.launch([overrides], initial_job_idx=number)
        except SystemExit as error:  # a user's mistake ends the process with a message
            if not isinstance(error.code, str):
                raise
            raise TrialError(error.code.removeprefix("error: ")) from error
        value = job._return_value  # the public property prints an error before it raises it
        if job.status is not JobStatus.COMPLETED:
            raise TrialError(f"{type(value).__name__}: {first_line(value)}") from value
        if value is None or math.isnan(value):
            raise TrialError(f"the monitored metric is {value}")
        return value

    def _save_best(self, study: "optuna.Study") -> None:
        results = {
            "name": "optuna",
            "best_params": study.best_params,
            "best_value": study.best_value,
        }
        write_atomically(self.folder / RESULTS, OmegaConf.to_yaml(results))


class TrialError(Exception):
    """Failure of one job of a sweep. The message is one line."""


def search_space(arguments: Sequence[str]) -> tuple[dict[str, "BaseDistribution"], list[str]]:
    """Splits overrides into distributions by key and overrides with a fixed value.

    The keys keep `+` and `++`. A later override replaces an earlier one of the same key.

    Raises:
        UserError: nothing varies, or an interval is not possible.
    """
    overrides = {
        override.get_key_element().lstrip("+~"): override
        for override in OverridesParser.create().parse_overrides(list(arguments))
    }
    space = {}
    for override in overrides.values():
        if override.is_sweep_override():
            try:
                space[override.get_key_element()] = distribution(override)
            except ValueError as error:
                raise UserError(
                    f"{override.input_line} cannot be searched: {first_line(error)}"
                ) from error
    if not space:
        raise UserError(
            "nothing varies in this sweep: add KEY='choice(A,B)' or KEY='interval(LOW,HIGH)'"
        )
    fixed = [str(o.input_line) for o in overrides.values() if not o.is_sweep_override()]
    return space, fixed


def distribution(override: Override) -> "BaseDistribution":
    """Converts Hydra's `interval`, `range` or `choice` to a distribution of Optuna."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    value: Any = override.value()
    if isinstance(value, IntervalSweep):
        low: Any = value.start
        high: Any = value.end
        log_scale = "log" in value.tags
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log_scale)
        return FloatDistribution(low, high, log=log_scale)
    options: list[Any] = list(override.sweep_iterator(Transformer.encode))
    if isinstance(value, RangeSweep):  # its stop is exclusive, and Optuna's high is not
        low, high = min(options), max(options)
        if isinstance(low, int):
            return IntDistribution(low, high, step=abs(int(value.step)))
        return FloatDistribution(low, high, step=abs(float(value.step)))
    return CategoricalDistribution(options)
