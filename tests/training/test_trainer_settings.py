"""Keys of `trainer`: each argument of Lightning's Trainer is honored, or refused with a way out."""

import inspect
from datetime import timedelta

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import RichModelSummary, Timer

from tilewright.callbacks import OverfittingCheck
from tilewright.checks import format_value
from tilewright.cli import app
from tilewright.cli.messages import one_line
from tilewright.cli.train import build_trainer
from tilewright.errors import UserError
from tilewright.training import trainer_settings

CHECKED_ELSEWHERE = {"_target_", "default_root_dir", "precision"}
PROFILER = "{_target_: pytorch_lightning.profilers.SimpleProfiler}"


def composed(*overrides):
    with initialize_config_dir(str(app.CONF), version_base="1.3"):
        return compose("train", ["stage=dvae", "run=x", "trainer=cpu", *overrides])


def settings(**changes):
    return OmegaConf.to_container(composed().trainer, resolve=True) | changes


def test_every_argument_of_lightnings_trainer_is_a_key_or_is_refused():
    arguments = inspect.signature(pl.Trainer.__init__).parameters.keys() - {"self"}
    keys = settings().keys()
    own = {"_target_", "gradient_scaling"}
    assert arguments == keys - own | trainer_settings.REFUSED.keys()
    assert not keys & trainer_settings.REFUSED.keys()
    assert keys == trainer_settings.RULES.keys() | CHECKED_ELSEWHERE


@pytest.mark.parametrize("key", trainer_settings.REFUSED)
def test_a_refused_key_is_one_line_however_it_is_set(key):
    with pytest.raises(ConfigCompositionException) as caught:
        composed(f"trainer.{key}=3")
    with pytest.raises(UserError) as refused:
        trainer_settings.check(settings(**{key: 3}))
    assert one_line(caught.value) == str(refused.value)
    assert str(refused.value).startswith(f"trainer.{key} is not supported: ")
    trainer_settings.check(settings(**{key: trainer_settings.UNCHANGED.get(key)}))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("accelerator", ["tpu", None, 1]),
        ("devices", [0, -1, 1.5, "x", "2", True, [], [0, 0], [-1], None]),
        ("num_nodes", [0, 1.0, True]),
        ("strategy", ["fsdp", "ddp_spawn", "deepspeed", None, {"a": 1}]),
        ("max_steps", [0, -1, 2.0, "many", None, True, float("inf")]),
        ("min_steps", [-1, 0.5, "x"]),
        ("max_time", ["00:00:00:00", "1:00", "1h", 60, {"hours": 1}, ""]),
        ("accumulate_grad_batches", [0, -1, 1.5, None]),
        ("gradient_clip_val", [0, -1, float("nan"), float("inf"), "x", True]),
        ("gradient_clip_algorithm", ["max", None]),
        ("val_check_interval", [0, -1, 1.0, 0.5, "00:00:10:00", None, True]),
        ("limit_val_batches", [-1, 0.5, 1.5, "all", True]),
        ("num_sanity_val_steps", [-2, 0.5, None]),
        ("log_every_n_steps", [0, -1, 0.5, None]),
        ("detect_anomaly", [1, "yes", None]),
        ("deterministic", ["x", 1]),
        ("benchmark", ["x", 1]),
        ("profiler", ["simple", True]),
        ("plugins", [[], None, "x", [{"_target_": "other.CheckpointIO"}]]),
    ],
)
def test_an_impossible_value_is_one_line_with_the_possible_ones(key, values):
    for value in values:
        with pytest.raises(UserError) as caught:
            trainer_settings.check(settings(**{key: value}))
        message = str(caught.value)
        assert message.startswith(f"trainer.{key}={format_value(value)} is not possible: set ")
        assert "\n" not in message


def test_a_scale_per_block_without_fp16_is_refused():
    values = {**settings(), "gradient_scaling": "per_block", "precision": "bf16-mixed"}
    with pytest.raises(UserError, match=r"no effect with trainer\.precision=bf16-mixed"):
        trainer_settings.check(values)


def test_more_minimum_than_maximum_updates_are_refused():
    with pytest.raises(UserError, match=r"min_steps=9 is larger than trainer\.max_steps=8"):
        trainer_settings.check(settings(max_steps=8, min_steps=9))


def test_lightning_receives_every_key(tmp_path):
    values = {
        "max_steps": 30,
        "min_steps": 3,
        "max_time": "00:00:01:00",
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 0.5,
        "gradient_clip_algorithm": "value",
        "val_check_interval": 7,
        "limit_val_batches": 1.0,
        "num_sanity_val_steps": -1,
        "log_every_n_steps": 3,
        "enable_model_summary": "true",
        "inference_mode": "false",
        "detect_anomaly": "true",
        "deterministic": "warn",
        "benchmark": "true",
        "default_root_dir": str(tmp_path),
        "profiler": PROFILER,
        "precision": "16-mixed",
        "gradient_scaling": "per_block",
        "devices": 2,
        "num_nodes": 1,
        "strategy": "ddp",
        "accelerator": "cpu",
    }
    config = composed(*(f"trainer.{key}={value}" for key, value in values.items()))
    trainer_settings.check(OmegaConf.to_container(config.trainer, resolve=True))
    try:
        trainer = build_trainer(config)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = False
    assert (trainer.max_steps, trainer.min_steps, trainer.accumulate_grad_batches) == (30, 3, 2)
    assert (trainer.gradient_clip_val, trainer.gradient_clip_algorithm) == (0.5, "value")
    assert (trainer.val_check_interval, trainer.limit_val_batches) == (7, 1.0)
    assert (trainer.num_sanity_val_steps, trainer.log_every_n_steps) == (float("inf"), 3)
    assert any(isinstance(callback, RichModelSummary) for callback in trainer.callbacks)
    (timer,) = (callback for callback in trainer.callbacks if isinstance(callback, Timer))
    assert timer.time_remaining() == timedelta(minutes=1).total_seconds()
    assert not trainer.validate_loop.inference_mode
    assert trainer._detect_anomaly
    assert trainer.default_root_dir == str(tmp_path)
    assert type(trainer.profiler).__name__ == "SimpleProfiler"
    assert (trainer.precision, trainer.num_devices, trainer.num_nodes) == ("16-mixed", 2, 1)
    assert type(trainer.precision_plugin.scaler).__name__ == "BlockScaler"
    assert type(trainer.strategy).__name__ == "DDPStrategy"
    assert type(trainer.strategy.checkpoint_io).__name__ == "AtomicCheckpointIO"


def test_loggers_and_the_progress_bar_can_be_left_out():
    changes = ["logger.csv=null", "callbacks.progress_bar=null"]
    trainer = build_trainer(composed(*changes))
    assert [type(logger).__name__ for logger in trainer.loggers] == ["StepTensorBoardLogger"]
    assert trainer.progress_bar_callback is None
    assert build_trainer(composed("logger=none")).loggers == []


def test_settings_of_a_callback_that_is_off_have_no_effect_and_are_shown(caplog):
    """The recipe ends a training that overfits, and the loss switches the check off."""
    trainer = build_trainer(composed("experiment=dvae_laptop", "loss=adversarial"))
    assert not any(isinstance(callback, OverfittingCheck) for callback in trainer.callbacks)
    [warning] = [text for text in caplog.messages if "has no effect" in text]
    assert warning.startswith("callbacks.overfitting is off, so {'stop': True} has no effect")


def test_a_run_without_checkpoints_is_refused():
    with pytest.raises(UserError, match=r"keep callbacks\.last"):
        build_trainer(composed("callbacks.best=null", "callbacks.last=null"))


@pytest.mark.parametrize(
    ("interval", "accumulated", "batches", "has_note"),
    [(6, 1, 1, False), (7, 1, 1, True), (12, 2, 1, False), (13, 2, 1, True), (99, 1, 0, False)],
)
def test_a_run_too_short_for_its_validations_has_a_note(interval, accumulated, batches, has_note):
    note = trainer_settings.validations_note(
        settings(
            max_steps=6,
            val_check_interval=interval,
            accumulate_grad_batches=accumulated,
            limit_val_batches=batches,
        )
    )
    assert (note is not None) == has_note
    if has_note:
        assert f"trainer.val_check_interval={interval}" in note
        assert ("accumulate" in note) == (accumulated > 1)
