"""Trains one stage: `python src/train.py stage=dvae`, then `python src/train.py stage=prior`."""

import logging
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from tilewright import program, runs
from tilewright.cli import app
from tilewright.distributed import launch
from tilewright.errors import UserError
from tilewright.hardware import resolve_precision
from tilewright.runs import environment, finetuning

TOKENIZER_CAPTIONS = 1_000_000  # enough for any vocabulary, and a stream may have no end


def prepare(config: DictConfig) -> tuple[DictConfig, Path | None]:
    """The run's final configuration and, if it resumes, the checkpoint to go on from.

    Everything that can be wrong with names, paths and settings comes out here, in a second and
    before torch is loaded.
    """
    if launch.joins(config):
        run = Path(config.run)
        return runs.load_config(run), Path(config.resume) if config.resume else None
    if OmegaConf.is_missing(config, "stage"):
        raise UserError("say what to train: stage=dvae, then stage=prior, then stage=ranker")
    logs = Path(config.paths.logs)
    if config.resume:
        if config.init and "init" in map(runs.key_of, app.overrides()):
            raise UserError("resume= goes on with a run and init= begins one: say one of them")
        wanted = None if config.resume is True else config.resume
        run, checkpoint = runs.to_resume(logs, config.stage, wanted)
        return app.resumed(runs.moved(runs.load_config(run), run)), checkpoint

    with open_dict(config):
        config.choices = app.choices()
        config.overrides = app.overrides()
        if config.init:
            wanted = None if config.init is True else config.init
            source = runs.find(logs, config.stage, wanted)
            finetuning.begin_with(config, source, map(runs.key_of, config.overrides))
        if config.stage == "prior":
            dvae = runs.find(logs, "dvae", config.dvae, data=config.choices["data"])
            network = runs.load_config(dvae).model.network
            config.dvae = str(dvae)
            config.image_tokens = {"grid": network.grid, "vocab": network.num_tokens}
        name = app.job_name(config.run_name)
        config.run = str(logs / config.stage / name)
        app.check(config)
        launch.check(config)
    if launch.is_requeued():  # the same command line then goes on, once there is a checkpoint
        if list((Path(config.run) / "checkpoints").glob("*.ckpt")):
            run, checkpoint = runs.to_resume(logs, config.stage, config.run)
            return runs.load_config(run), checkpoint
    elif launch.is_first() and (Path(config.run) / runs.CONFIG).exists():
        raise UserError(f"{config.run} exists: resume={config.run} goes on with it")
    return config, None


@app.command("train")
def main(config: DictConfig) -> float | None:
    """Trains a run; the best value of its monitored figure, which a sweep looks for."""
    config, checkpoint = prepare(config)
    run = Path(config.run)

    import pytorch_lightning as pl
    from hydra.utils import instantiate

    from tilewright.callbacks.checkpoints import best_score
    from tilewright.distributed.fsdp import building
    from tilewright.training.compiling import should_compile

    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # they announce what is missing
    pl.seed_everything(config.seed, workers=True, verbose=False)
    trainer = instantiate(
        config.trainer,
        devices=launch.devices(config),
        precision=resolve_precision(config.trainer.precision),
        logger=list(instantiate(config.logger).values()),
        callbacks=[one for one in instantiate(config.callbacks).values() if one is not None],
    )
    launch.check_share(config.data.batch_size, trainer.world_size)
    data = instantiate(config.data)
    if trainer.is_global_zero:
        data.setup()
    with building(trainer):
        network = instantiate(config.model.network)
    model = instantiate(config.model, network=network)
    if checkpoint is None and config.get("init"):
        if next(network.parameters()).is_meta:
            raise UserError("init= gives weights to a network that is there: leave on_meta out")
        runs.fill(network, Path(config.init))
    if should_compile(config.compile, trainer.strategy.root_device.type):
        model.network.compile()
    if trainer.is_global_zero:  # all that can be wrong has been found by now: the run begins
        begin(run, config, data, checkpoint)
    else:
        logging.disable(logging.WARNING)  # the first process says it for all
        trainer.strategy.setup_environment()  # waits for the first process, and so for its run
    if data.tokenizer is not None:
        data.tokenizer.load(run / runs.TOKENIZER)

    if trainer.is_global_zero:
        print(f"Training {run}; to watch: tensorboard --logdir {config.paths.logs}", flush=True)
    with launch.ended_together(trainer):
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    if trainer.is_global_zero:
        print(f"Trained {run}")
    return best_score(trainer)


def begin(run: Path, config: DictConfig, data: Any, checkpoint: Path | None) -> None:
    """What the first process does before the training: the run's folder, and what lies in it."""
    if checkpoint is not None:
        runs.check_unfinished(checkpoint, config.trainer.max_steps)
    data.examples("train", 1)  # or no run is made for data of which nothing can be used
    runs.create(run, config)
    environment.record(run, checkpoint)
    if checkpoint is None and data.tokenizer is not None:
        if config.get("init"):
            data.tokenizer.load(Path(config.init) / runs.TOKENIZER)
        else:
            data.tokenizer.train(islice(data.captions("train"), TOKENIZER_CAPTIONS))
        data.tokenizer.save(run / runs.TOKENIZER)
    if checkpoint is None and config.stage == "prior":
        runs.keep_dvae(run, Path(config.dvae))
    launch.tell_others(run, checkpoint)
    if program.is_installed_command():
        sys.argv.insert(1, "train")  # as Lightning starts the others: tilewright train run=...
