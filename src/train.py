"""Trains one stage: `python src/train.py stage=dvae`, then `python src/train.py stage=prior`."""

import logging
from itertools import islice
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from tilewright import command_line, runs
from tilewright.errors import UserError

TOKENIZER_CAPTIONS = 1_000_000  # enough for any vocabulary, and a stream may have no end


def prepare(config: DictConfig) -> tuple[DictConfig, Path | None]:
    """The run's final configuration and, if it resumes, the checkpoint to go on from.

    Everything that can be wrong with names, paths and settings comes out here, in a second and
    before torch is loaded.
    """
    if OmegaConf.is_missing(config, "stage"):
        raise UserError("say what to train: stage=dvae, then stage=prior")
    logs = Path(config.paths.logs)
    if config.resume:
        wanted = None if config.resume is True else config.resume
        run = runs.find(logs, config.stage, wanted)
        resumed = command_line.resumed(runs.moved(runs.load_config(run), run))
        return resumed, runs.checkpoint(run, "last")

    with open_dict(config):
        config.choices = command_line.choices()
        if config.stage == "prior":
            dvae = runs.find(logs, "dvae", config.dvae, data=config.choices["data"])
            network = runs.load_config(dvae).model.network
            config.dvae = str(dvae)
            config.image_tokens = {"grid": network.grid, "vocab": network.num_tokens}
        name = command_line.job_name(config.run_name)
        config.run = str(logs / config.stage / name)
        command_line.check(config)
    if (Path(config.run) / runs.CONFIG).exists():
        raise UserError(f"{config.run} exists: resume={config.run} goes on with it")
    return config, None


@command_line.command("train")
def main(config: DictConfig) -> None:
    config, checkpoint = prepare(config)
    run = Path(config.run)

    import pytorch_lightning as pl
    from hydra.utils import instantiate

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # it announces what is missing
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data = instantiate(config.data)
    data.setup()
    model = instantiate(config.model)
    if config.compile:
        model.network.compile()
    trainer = instantiate(
        config.trainer,
        precision=command_line.precision(config.trainer.precision),
        logger=list(instantiate(config.logger).values()),
        callbacks=list(instantiate(config.callbacks).values()),
    )
    if checkpoint is None:  # all that can be wrong has been found by now: the run begins
        runs.create(run, config)
        if data.tokenizer is not None:
            data.tokenizer.train(islice(data.captions("train"), TOKENIZER_CAPTIONS))
            data.tokenizer.save(run / runs.TOKENIZER)
        if config.stage == "prior":
            runs.keep_dvae(run, Path(config.dvae))
    else:
        runs.check_unfinished(checkpoint, trainer.max_steps)
        if data.tokenizer is not None:
            data.tokenizer.load(run / runs.TOKENIZER)

    print(f"Training {run}; to watch: tensorboard --logdir {config.paths.logs}")
    trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    print(f"Trained {run}")


if __name__ == "__main__":
    main()
