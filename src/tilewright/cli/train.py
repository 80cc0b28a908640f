"""Trains one stage: `python src/train.py stage=dvae`, then `python src/train.py stage=prior`."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from tilewright import files, program, runs
from tilewright.checks import format_value
from tilewright.cli import app, settings
from tilewright.cli.resume import with_recorded_options
from tilewright.cli.run_config import check_new, final_config
from tilewright.configs import instantiate, switched_on
from tilewright.distributed import launch
from tilewright.errors import UserError
from tilewright.hardware import check_accelerator, has_trainer_gpu, resolve_precision
from tilewright.runs import environment
from tilewright.training import trainer_settings
from tilewright.weight_files import limit_parameters

if TYPE_CHECKING:  # torch is loaded after the settings have been checked
    import pytorch_lightning as pl

log = logging.getLogger(__name__)

TOKENIZER_CAPTIONS = 1_000_000  # enough for any vocabulary; a streaming dataset may never end


@app.command("train", with_recorded_options)
def main(config: DictConfig) -> float | None:
    """Trains a run and returns the best value of its monitored metric, for a sweep."""
    with launch.requeue_on_signal():
        return train(*final_config(config))


def train(config: DictConfig, checkpoint: Path | None) -> float | None:
    """Trains a run from its final configuration, and returns its best value."""
    trainer = build_trainer(config)

    from tilewright.callbacks.checkpoints import best_score
    from tilewright.callbacks.monitoring import check_measured

    data = instantiate(config.data)
    model = build_model(config, trainer, checkpoint)
    check_measured(trainer, model)
    if trainer.is_global_zero:
        data.setup()  # last, because preparing the splits takes longest
    run = Path(config.run)
    with lock_run(run, trainer, checkpoint), keep_config_until_started(run, trainer, checkpoint):
        begin(config, trainer, data, checkpoint)
        fit(config, trainer, model, data, checkpoint)
    return best_score(trainer)


def build_trainer(config: DictConfig) -> "pl.Trainer":
    """Builds Lightning's trainer, and seeds every random number generator.

    Raises:
        UserError: the settings leave no checkpoint, or do not fit the machine.
    """
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import Checkpoint, ProgressBar

    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they advertise features
    check_accelerator(config.trainer.accelerator)  # before slow imports of callbacks
    precision = resolve_precision(config.trainer.precision, config.trainer.accelerator)
    if precision == "16-mixed" and not has_trainer_gpu(config.trainer.accelerator):
        log.warning(
            "trainer.precision=16-mixed computes in fp16 on the CPU, which is slow and for tests: "
            "use bf16-mixed or 32-true to train"
        )
    pl.seed_everything(config.seed, workers=True, verbose=False)
    callbacks = list(map(instantiate, switched_on("callbacks", config.callbacks)))
    if not any(isinstance(callback, Checkpoint) for callback in callbacks):
        raise UserError(
            "callbacks has no checkpoint, and a run needs one: keep callbacks.last or "
            "callbacks.best"
        )
    trainer = instantiate(
        config.trainer,
        devices=launch.devices(config),
        precision=precision,
        logger=list(map(instantiate, switched_on("logger", config.logger))),
        callbacks=callbacks,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
    )
    launch.check_nodes(trainer)
    launch.check_batch_size(config.data.batch_size, trainer.world_size)
    return trainer


def build_model(config: DictConfig, trainer: "pl.Trainer", checkpoint: Path | None) -> Any:
    """Builds the stage's module, with the weights that the training starts from.

    They are those of `init=` if the run is new, and those of the base under adapters.
    """
    from tilewright.distributed.fsdp import network_device
    from tilewright.training.compiling import should_compile

    check_adam_device(config, trainer)
    weights, source = load_initial_weights(config, checkpoint)
    limit: contextlib.AbstractContextManager = contextlib.nullcontext()
    if weights is not None:
        limit = limit_parameters(weights, source)
    with network_device(trainer), limit:
        network = instantiate(config.model.network)
    model = instantiate(config.model, network=network)
    if weights is not None:
        if next(network.parameters()).is_meta:
            raise UserError(
                "init= cannot load weights into a network on the meta device: set "
                "trainer.strategy.on_meta=false"
            )
        runs.load_into(network, weights, source)
    if config.get("lora"):
        instantiate(config.lora).add_to(network)
    if should_compile(config.compile, trainer.strategy.root_device.type):
        model.network.compile()
    return model


def check_adam_device(config: DictConfig, trainer: "pl.Trainer") -> None:
    """Checks that AdamW with 8 bits supports the device and the strategy.

    Raises:
        UserError: it does not.
    """
    from tilewright.distributed.fsdp import FullyShardedStrategy

    if OmegaConf.select(config, "model.adam_bits", default=32) == 32:
        return
    device = trainer.strategy.root_device.type
    if isinstance(trainer.strategy, FullyShardedStrategy):
        reason = "does not work with the sharded weights of trainer=fsdp: choose another trainer"
    elif device not in ("cuda", "cpu"):
        reason = f"needs a GPU of NVIDIA or a CPU, not {device}: choose another trainer"
    else:
        return
    raise UserError(f"model.adam_bits={config.model.adam_bits} {reason}, or leave it out")


def load_initial_weights(
    config: DictConfig, checkpoint: Path | None
) -> tuple[dict[str, Any] | None, Path]:
    """Returns the weights that a checkpoint does not hold, or None without any, and their folder.

    A new run with adapters records a digest of their base.
    """
    from tilewright.data.image_tokenizer import weights_digest

    if config.get("base"):
        weights = runs.load_base(Path(config.run), config)
        config.base.digest = config.base.digest or weights_digest(weights)
        return weights, Path(config.base.path)
    source = Path(config.get("init") or "")
    is_needed = checkpoint is None and config.get("init")
    return (runs.load_weights(source) if is_needed else None), source


@contextlib.contextmanager
def lock_run(run: Path, trainer: "pl.Trainer", checkpoint: Path | None) -> Iterator[None]:
    """Locks the run's folder while it trains. Only the first process holds the lock."""
    if not trainer.is_global_zero:
        yield
        return
    with runs.lock(run):
        if checkpoint is None:
            check_new(run)  # again, because another process may have trained it in between
        yield


@contextlib.contextmanager
def keep_config_until_started(
    run: Path, trainer: "pl.Trainer", checkpoint: Path | None
) -> Iterator[None]:
    """Restores a resumed run's configuration if the training fails before its first batch.

    The other processes read the configuration while they start, so it is written before the
    checkpoint is loaded. A checkpoint that fails to load must not leave settings that do not fit.
    """
    if checkpoint is None or not trainer.is_global_zero:
        yield
        return
    from pytorch_lightning.callbacks import LambdaCallback

    started, saved = Event(), (run / runs.CONFIG).read_text()
    trainer.callbacks.append(  # type: ignore[attr-defined]
        LambdaCallback(on_train_start=lambda *_: started.set())
    )
    try:
        yield
    finally:
        if not started.is_set():
            files.write_atomically(run / runs.CONFIG, saved)


def begin(config: DictConfig, trainer: "pl.Trainer", data: Any, checkpoint: Path | None) -> None:
    """Creates the run's folder in the first process. The other processes wait for it."""
    run = Path(config.run)
    if trainer.is_global_zero:
        plain: Any = OmegaConf.to_container(config.trainer, resolve=True)
        note = trainer_settings.validations_note(plain)
        if note is not None:
            log.info("%s", note)
        write_run(run, config, data, checkpoint)
        launch.set_child_arguments(run, checkpoint)
        if program.is_installed_command():
            sys.argv.insert(1, "train")  # Lightning starts the others as `tilewright train ...`
        if config.get("sampling"):
            print(f"Samples and their metrics use the recommended {describe_sampling(config)}")
        print(f"Training {run}; to watch: tensorboard --logdir {config.paths.logs}", flush=True)
    else:
        logging.disable(logging.WARNING)  # the first process logs for all
        trainer.strategy.setup_environment()  # waits for the first process
        check_same_sources(config, runs.load_config(run))
    if data.tokenizer is not None:
        data.tokenizer.load(run / runs.TOKENIZER)


def describe_sampling(config: DictConfig) -> str:
    """Returns a prior's recommended sampling as keys of the command line."""
    keys = [key for key in config.sampling if key != "_target_"]
    return " ".join(f"sampling.{key}={format_value(config.sampling[key])}" for key in keys)


def check_same_sources(config: DictConfig, first: DictConfig) -> None:
    """Checks that this process has found the same newest runs as the first process.

    Raises:
        UserError: another run has become the newest in between.
    """
    for key in ("dvae", "init"):
        if config.get(key) != first.get(key):
            raise UserError(
                f"the first process uses {key}={first.get(key)}, and another one uses "
                f"{config.get(key)}: set {key}=PATH"
            )


def write_run(run: Path, config: DictConfig, data: Any, checkpoint: Path | None) -> None:
    """Writes the run's folder: configuration, environment, tokenizer, and a prior's dVAE."""
    if checkpoint is not None:
        runs.check_unfinished(checkpoint, config.trainer.max_steps)
    data.examples("train", 1)  # raises before a folder is made if no record is usable
    runs.create(run, config)
    environment.record(run, settings.command_line(), checkpoint)
    if checkpoint is not None:
        return
    if data.tokenizer is not None:
        if config.get("init"):
            data.tokenizer.load(Path(config.init) / runs.TOKENIZER)
        else:
            data.tokenizer.train(islice(data.captions("train"), TOKENIZER_CAPTIONS))
        data.tokenizer.save(run / runs.TOKENIZER)
    if config.stage == "prior":
        runs.copy_dvae(run, Path(config.dvae))


def fit(
    config: DictConfig, trainer: "pl.Trainer", model: Any, data: Any, checkpoint: Path | None
) -> None:
    """Trains to the end, from a checkpoint if there is one."""
    with launch.kill_children_on_error(trainer):
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    if trainer.is_global_zero:
        print(closing_line(config, trainer))


def closing_line(config: DictConfig, trainer: "pl.Trainer") -> str:
    """Returns the last line of a training: what ended it, and how to continue."""
    from tilewright.callbacks.checkpoints import weights_problem
    from tilewright.callbacks.problems import ProblemCallback

    problem = weights_problem(trainer)
    if trainer.global_step >= trainer.max_steps:
        return f"Trained {config.run}" + (f", but {problem}" if problem else "")
    callbacks: Any = trainer.callbacks  # type: ignore[attr-defined]
    problems = [callback for callback in callbacks if isinstance(callback, ProblemCallback)]
    stops = [key for callback in problems if (key := callback.stopped_by)]
    reason = f" by {stops[0]}=true" if stops else ""
    changes = [f"{key}=false" for key in stops]
    if config.trainer.get("max_time"):
        changes.append("trainer.max_time=null")
    command = f"continue with {' '.join([f'resume={config.run}', *changes])}"
    return (
        f"Stopped after update {trainer.global_step} of {trainer.max_steps}{reason}: "
        f"{problem or command}"
    )
