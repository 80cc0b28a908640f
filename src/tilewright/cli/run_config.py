"""Configuration of a training: that of a new run, or of the run that `resume=` names.

Nothing here loads torch, so mistakes in names, paths and settings are reported at once.
"""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from tilewright import runs
from tilewright.checks import check_whole, is_whole
from tilewright.cli import settings
from tilewright.cli.resume import find_run, resumed_config
from tilewright.configs import escape, instantiate
from tilewright.distributed import launch
from tilewright.errors import UserError
from tilewright.runs import finetuning, fixed_keys
from tilewright.training import trainer_settings

TOKENIZER_SIZES = ("vocab_size", "width", "digest")  # settings of a text tokenizer that may be null


def final_config(config: DictConfig) -> tuple[DictConfig, Path | None]:
    """Returns the run's configuration and the checkpoint to resume from, if there is one.

    Raises:
        UserError: a name, a path or a setting is not possible.
    """
    if launch.is_child(settings.typed_keys()):
        return runs.load_config(Path(config.run)), Path(config.resume) if config.resume else None
    check_not_filled_in()
    if OmegaConf.is_missing(config, "stage"):
        raise UserError("stage= is missing: choose stage=dvae, then stage=prior, then stage=ranker")
    if config.resume:
        return resumed_run(config)
    if launch.is_requeued() and not settings.is_typed("run_name"):
        raise UserError(
            "SLURM has queued this job again, and without run_name=NAME it would start a new run: "
            "continue the first one with resume=PATH, and set run_name=NAME for new jobs"
        )
    if launch.is_requeued() and runs.has_checkpoint(new_folder(config)):
        logs, path = Path(config.paths.logs), str(new_folder(config))
        run, checkpoint = runs.find_resumable(logs, config.stage, path)
        return located_config(run), checkpoint  # the same command resumes
    config = new_run(config)
    if launch.is_first():
        check_new(Path(config.run))
    return config, None


def check_not_filled_in() -> None:
    """Checks that the command line sets no key that training fills in.

    Raises:
        UserError: it sets one.
    """
    for key in settings.typed_keys():
        branch = key.partition(".")[0]
        if advice := fixed_keys.FILLED_IN.get(branch):
            raise UserError(f"{key}= is filled in by training: {advice}")


def check_new(run: Path) -> None:
    """Checks that no weights are lost if a new run uses a folder.

    A run that was killed before its first checkpoint starts over.

    Raises:
        UserError: the folder contains a model, or a run with a checkpoint.
    """
    if runs.is_model(run):
        raise UserError(f"{run} is a model: choose another run_name")
    if runs.has_checkpoint(run):
        raise UserError(f"{run} exists: resume it with resume={run}, or choose another run_name")


def resumed_run(config: DictConfig) -> tuple[DictConfig, Path]:
    """Returns the configuration and the checkpoint of the run that `resume=` names."""
    if settings.is_typed("init") and config.init:
        raise UserError("resume= continues a run and init= starts a new one: leave one of them out")
    run, checkpoint = find_run(config)
    if settings.is_typed("run_name") and config.run_name != run.name:
        raise UserError(
            f"run_name={config.run_name} cannot rename {run}, which resume= continues: leave "
            "run_name out, or start a new run from its weights with init="
        )
    if launch.is_requeued():  # the job may have written it after that checkpoint
        checkpoint = runs.checkpoint(run, "last")
    config = resumed_config(located_config(run))
    if config.stage == "prior":
        check_guidance(config)
    check_trainer(config)
    check_discriminator(config)
    launch.check_launch(config, needs_name=False)
    return config, checkpoint


def located_config(run: Path) -> DictConfig:
    """Returns a run's saved configuration with paths to where the run and its base are now."""
    saved = runs.load_config(run)
    config = runs.relocate(saved, run)
    if saved.get("base"):
        config.base.path = escape(str(runs.base_folder(run, saved)))
    return config


def new_folder(config: DictConfig) -> Path:
    """Returns the folder of a new run.

    Raises:
        UserError: the name of the run is not possible.
    """
    runs.check_name(config.run_name)
    return Path(config.paths.logs) / config.stage / settings.job_name(config.run_name)


def check_model(config: DictConfig) -> None:
    """Checks that the model belongs to the stage. A model from another package is accepted.

    Raises:
        UserError: the model belongs to another stage.
    """
    stage = str(config.model.get("_target_")).removeprefix("tilewright.").partition(".")[0]
    if stage in runs.STAGES and stage != config.stage:
        options = [name for name in settings.options("model") if name.startswith(config.stage)]
        raise UserError(
            f"model={settings.choices()['model']} is a model of stage={stage}: set that stage, or "
            f"choose a model of {', '.join(options)}"
        )


def check_loss(config: DictConfig) -> None:
    """Checks that the model has a key for each term that the loss adds.

    Raises:
        UserError: a term has no effect on the model.
    """
    for term in ("perceptual", "adversarial"):
        if OmegaConf.select(config, f"loss.{term}") is not None and term not in config.model:
            choices = settings.choices()
            raise UserError(
                f"loss={choices['loss']} has no effect on model={choices['model']}, whose config "
                f"has no key {term}: leave it out, or add {term}: ${{loss.{term}}} to that config"
            )


def new_run(config: DictConfig) -> DictConfig:
    """Returns the configuration of a new run, with everything filled in that it depends on."""
    check_model(config)
    check_loss(config)
    logs = Path(config.paths.logs)
    with open_dict(config):
        config.choices = settings.choices()
        config.overrides = escape(settings.overrides())
        check_sweep(config)
        if config.init:
            path = None if config.init is True else config.init
            source = runs.find(logs, config.stage, path)
            finetuning.adopt(config, source, map(runs.override_key, config.overrides))
        check_adapters(config)
        if config.lora:
            config.base = {"path": escape(config.init), "digest": None}
        if config.stage == "prior":
            dvae = settings.find_dvae(config)
            config.dvae = escape(str(dvae))
            config.image_tokens = image_tokens(dvae)
            check_guidance(config)
        if config.tokenizer is not None:
            check_tokenizer(config)
            fill_in_tokenizer(config)
        config.run = escape(str(new_folder(config)))
        check_trainer(config)  # before schedules compute with trainer.max_steps
        settings.check_complete(config)
        check_discriminator(config)
        launch.check_launch(config)
    return config


def check_sweep(config: DictConfig) -> None:
    """Checks that the jobs of a sweep do not depend on each other, and return a value to Optuna.

    Raises:
        UserError: each job would start from the one before it, or Optuna would get no value or
            prefer the worst one.
    """
    if not settings.is_sweep():
        return
    if config.init is True:
        raise UserError(
            "init=true names the newest run, which in a sweep is that of the job before: set "
            "init=PATH"
        )
    direction = HydraConfig.get().sweeper.get("direction")
    if direction is None:  # not a sweep of Optuna
        return
    best = config.callbacks.get("best")
    if best is None or config.trainer.limit_val_batches == 0:
        cause = "trainer.limit_val_batches=0" if best else "callbacks.best=null"
        raise UserError(
            f"Optuna needs the best value of {config.monitor}, and {cause} disables it: "
            "leave it out"
        )
    mode = best.get("mode", "min")
    if {"minimize": "min", "maximize": "max"}.get(direction) != mode:
        raise UserError(
            f"hydra.sweeper.direction={direction} does not fit callbacks.best.mode={mode}: set "
            "minimize with min, or maximize with max"
        )


def image_tokens(dvae: Path) -> dict[str, Any]:
    """Returns the grid and the vocabulary of a dVAE's image tokens.

    Raises:
        UserError: its configuration has none.
    """
    network = OmegaConf.select(runs.load_config(dvae), "model.network") or {}
    grid, vocab = network.get("grid"), network.get("num_tokens")
    check_whole(f"model.network.grid in {dvae}", grid)
    check_whole(f"model.network.num_tokens in {dvae}", vocab)
    return {"grid": grid, "vocab": vocab}


def check_adapters(config: DictConfig) -> None:
    """Checks that low-rank adapters have a network to adapt.

    Raises:
        UserError: the stage has no linear layers, or no trained weights.
    """
    if not config.lora:
        return
    if "_target_" not in config.lora:
        raise UserError(f"lora.{min(config.lora)}= needs lora=default: set that, too")
    name = f"lora={settings.choices().get('lora')}"
    if config.stage == "dvae":
        raise UserError(f"{name} adapts linear layers, and a dVAE has convolutions: leave it out")
    if not config.init:
        raise UserError(
            f"{name} adapts a trained network, and init= names none: set init=PATH, or leave "
            f"{name} out"
        )


def check_tokenizer(config: DictConfig) -> None:
    """Checks that a text encoder is used with its own tokenizer.

    Raises:
        UserError: the command line chooses both.
    """
    if config.get("caption") and settings.is_typed("tokenizer"):
        name = settings.choices()["tokenizer"]
        raise UserError(f"caption=encoder has its own tokenizer: leave tokenizer={name} out")


def fill_in_tokenizer(config: DictConfig) -> None:
    """Fills in the sizes of a pretrained tokenizer or text encoder, which the network needs.

    Raises:
        UserError: there is no such tokenizer, or it cannot be used.
    """
    settings.make_encoder_absolute(config)
    node = config.tokenizer
    unknown = [key for key in TOKENIZER_SIZES if key in node and node[key] is None]
    if not unknown:
        return
    settings.check_no_missing(node)
    tokenizer = instantiate(node)
    tokenizer.train(())
    for key in unknown:
        node[key] = getattr(tokenizer, key)


def check_guidance(config: DictConfig) -> None:
    """Recommends no guidance for a prior that is trained without empty captions.

    Raises:
        UserError: the command line recommends guidance for such a prior.
    """
    guidance = OmegaConf.select(config, "sampling.guidance", default=1)
    if guidance == 1 or OmegaConf.select(config, "model.caption_dropout") != 0:
        return
    if settings.is_typed("sampling.guidance"):
        raise UserError(
            f"sampling.guidance={guidance} needs a prior that has seen empty captions: set "
            "model.caption_dropout=0.1, or leave sampling.guidance out"
        )
    config.sampling.guidance = 1.0


def check_trainer(config: DictConfig) -> None:
    """Checks the settings of `trainer`.

    Raises:
        UserError: a key or a value is not supported.
    """
    plain: Any = OmegaConf.to_container(config.trainer, resolve=True)
    trainer_settings.check(plain)
    if plain.get("gradient_scaling") == "per_block" and config.stage != "prior":
        raise UserError(
            "trainer.gradient_scaling=per_block is for priors, not for "
            f"stage={config.stage}: leave it out"
        )


def check_discriminator(config: DictConfig) -> None:
    """Checks that a discriminator starts before the end of the training.

    Raises:
        UserError: it starts at the end or later.
    """
    start = OmegaConf.select(config, "model.adversarial.start")
    steps = config.trainer.max_steps
    if is_whole(start) and start >= steps:
        raise UserError(
            f"loss.adversarial.start={start} is not before trainer.max_steps={steps}, so the run "
            "has no discriminator: lower it, or raise trainer.max_steps"
        )
