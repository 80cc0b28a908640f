"""Each key that a resumed run accepts reaches the object that it sets."""

import shutil

import pytest
import torch
from pytorch_lightning.callbacks import WeightAveraging

from helpers.command import make_home, run
from tilewright.cli import train

# Key -> (new value, function that reads it from the trainer).
COMMON = {
    "model.weight_decay": (0.125, lambda t: t.optimizers[0].param_groups[0]["weight_decay"]),
    "model.betas": ([0.5, 0.75], lambda t: list(t.optimizers[0].param_groups[-1]["betas"])),
    "model.eps": (1e-5, lambda t: t.optimizers[0].param_groups[-1]["eps"]),
    "model.learning_rate.then.start": (
        0.25,
        lambda t: t.lightning_module.learning_rate.then.start,
    ),
    "trainer.gradient_clip_val": (0.5, lambda t: t.gradient_clip_val),
    "trainer.accumulate_grad_batches": (2, lambda t: t.accumulate_grad_batches),
    "trainer.val_check_interval": (2, lambda t: t.val_check_batch),
    "trainer.limit_val_batches": (2, lambda t: t.limit_val_batches),
    "trainer.log_every_n_steps": (2, lambda t: t.log_every_n_steps),
    "data.batch_size": (4, lambda t: t.datamodule.batch_size),
    "callbacks.ema.every_n_updates": (1, lambda t: callback(t, "AveragedWeights").every_n_updates),
    "callbacks.ema.decay": (0.0, lambda t: 0.0 if average_is_current(t) else 1.0),
    "callbacks.health.stop": ("true", lambda t: str(callback(t, "TrainingHealth").stop).lower()),
}
KEYS = {
    "dvae": {
        **COMMON,
        "model.beta.end": (0.25, lambda t: t.lightning_module.beta.end),
        "model.temperature.then.end": (0.125, lambda t: t.lightning_module.temperature.then.end),
    },
    "prior": {
        **COMMON,
        "model.caption_dropout": (0.25, lambda t: t.lightning_module.caption_dropout),
        "model.image_dropout": (0.25, lambda t: t.lightning_module.image_dropout),
        "model.network.checkpointing": (
            "true",
            lambda t: str(t.lightning_module.network.checkpointing).lower(),
        ),
        "tokenizer.dropout": (0.25, lambda t: t.datamodule.tokenizer.dropout),
    },
    "ranker": {
        **COMMON,
        "model.cutmix_negatives": (
            "false",
            lambda t: str(t.lightning_module.cutmix_negatives).lower(),
        ),
    },
}


def callback(trainer, name):
    return next(c for c in trainer.callbacks if type(c).__name__ == name)


def average_is_current(trainer):
    """Returns True if the averaged weights equal the trained ones, as with a decay of 0."""
    average = next(c for c in trainer.callbacks if isinstance(c, WeightAveraging))._average_model
    current = trainer.lightning_module.parameters()
    return all(map(torch.equal, average.module.parameters(), current))


@pytest.fixture(scope="module")
def trainers(trained, tmp_path_factory):
    """Trainers of runs that were resumed with all keys changed."""
    home = make_home(tmp_path_factory.mktemp("resumed"))
    shutil.copytree(trained.logs, home.logs, symlinks=True)
    home.data.symlink_to(trained.data)
    trainers_by_stage = {}

    def build(config):
        trainers_by_stage[config.stage] = build_trainer(config)
        return trainers_by_stage[config.stage]

    build_trainer = train.build_trainer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "build_trainer", build)
        for stage, keys in KEYS.items():
            changes = [f"++{key}={value}" for key, (value, _) in keys.items()]
            changes += ["trainer.max_steps=8", "~callbacks.frechet"][: 1 if stage != "dvae" else 2]
            run(home, "train", f"stage={stage}", "resume=true", *changes)
    return trainers_by_stage


@pytest.mark.parametrize(("stage", "key"), [(stage, key) for stage in KEYS for key in KEYS[stage]])
def test_a_key_of_a_resumed_run_takes_effect(trainers, stage, key):
    value, read = KEYS[stage][key]
    assert trainers[stage].global_step == 8
    assert read(trainers[stage]) == value
