"""Rules for the keys of `trainer`, checked before torch is loaded.

The keys are arguments of Lightning's Trainer. A rule of `RULES` checks each one, or `REFUSED` names
the key to use instead.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tilewright.checks import format_value, is_number, is_whole
from tilewright.errors import UserError

# Arguments of Lightning's Trainer that are not supported, with advice.
REFUSED = {
    "max_epochs": "a run is counted in updates, so set trainer.max_steps; an epoch has as many "
    "updates as the training split has batches of data.batch_size",
    "min_epochs": "a run is counted in updates, so set trainer.min_steps",
    "check_val_every_n_epoch": "a run is counted in batches, so set trainer.val_check_interval",
    "reload_dataloaders_every_n_epochs": "a run has no epochs, and its data is loaded once",
    "fast_dev_run": "it leaves no checkpoint, so use debug=default, a training of 20 updates",
    "overfit_batches": "set data.overfit_batches to train on the first batches only",
    "limit_train_batches": "set trainer.max_steps for a shorter run, or data.overfit_batches to "
    "train on the first batches only",
    "limit_test_batches": "training does not test, so set images=N of src/eval.py",
    "limit_predict_batches": "training does not predict, so set n=N of src/generate.py",
    "callbacks": "set callbacks.NAME",
    "logger": "set logger=none, or logger.NAME",
    "enable_checkpointing": "a run needs a checkpoint; callbacks.best=null leaves only the last",
    "enable_progress_bar": "set callbacks.progress_bar=null",
    "use_distributed_sampler": "the data module shares batches between processes",
    "sync_batchnorm": "no network has batch normalization; in a network of your own, use "
    "torch.nn.SyncBatchNorm",
    "barebones": "it leaves no checkpoint; benchmarks/ measures speed",
    "model_registry": "export the run with src/export.py and upload that folder",
    "enable_autolog_hparams": "set callbacks.tensorboard.settings",
}
# Values with which a refused key changes nothing.
UNCHANGED = {"max_epochs": -1, "use_distributed_sampler": False}

GRADIENT_SCALINGS = ("global", "per_block")
STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true")
DURATION = re.compile(r"(\d+):(\d\d):(\d\d):(\d\d)")


class Rule(NamedTuple):
    """Values that a key accepts."""

    accepts: Callable[[Any], bool]
    description: str


def _count(minimum: int, unit: str) -> Rule:
    description = f"a whole number of {unit}, {minimum} or more"
    return Rule(lambda value: is_whole(value, minimum), description)


def _is_positive(value: Any) -> bool:
    return is_number(value, 0) and value != 0


def _is_duration(value: Any) -> bool:
    match = DURATION.fullmatch(value) if isinstance(value, str) else None
    return match is not None and any(map(int, match.groups()))


def _are_devices(value: Any) -> bool:
    if isinstance(value, list):
        is_index = [is_whole(index, 0) for index in value]
        return bool(value) and all(is_index) and len(set(value)) == len(value)
    return value == "auto" or is_whole(value, 1)


def _optional(rule: Rule) -> Rule:
    return Rule(lambda value: value is None or rule.accepts(value), f"{rule.description}, or null")


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


SWITCH = Rule(lambda value: isinstance(value, bool), "true or false")
RULES = {
    "accelerator": Rule(
        lambda value: value in ("auto", "cpu", "gpu", "cuda", "mps"), "auto, cpu, gpu, cuda or mps"
    ),
    "devices": Rule(_are_devices, "auto, a number of processes, or a list of GPUs such as [0,1]"),
    "num_nodes": _count(1, "nodes"),
    "strategy": Rule(
        lambda value: value in STRATEGIES or _is_object(value),
        f"one of {', '.join(STRATEGIES)}, or choose trainer=fsdp",
    ),
    "max_steps": _count(1, "updates"),
    "min_steps": _optional(_count(0, "updates")),
    "max_time": _optional(
        Rule(_is_duration, "a duration as days:hours:minutes:seconds, such as 00:12:00:00")
    ),
    "accumulate_grad_batches": _count(1, "batches"),
    "gradient_clip_val": _optional(Rule(_is_positive, "a positive number")),
    "gradient_clip_algorithm": Rule(lambda value: value in ("norm", "value"), "norm or value"),
    "gradient_scaling": Rule(
        lambda value: value in GRADIENT_SCALINGS, " or ".join(GRADIENT_SCALINGS)
    ),
    "val_check_interval": _count(1, "batches"),
    "limit_val_batches": _optional(
        Rule(
            lambda value: is_whole(value, 0) or (isinstance(value, float) and value == 1.0),
            "a whole number of batches, or 1.0 for all",
        )
    ),
    "num_sanity_val_steps": Rule(
        lambda value: is_whole(value, -1), "a whole number of batches, or -1 for all"
    ),
    "log_every_n_steps": _count(1, "updates"),
    "enable_model_summary": SWITCH,
    "inference_mode": SWITCH,
    "detect_anomaly": SWITCH,
    "deterministic": _optional(
        Rule(lambda value: isinstance(value, bool) or value == "warn", "true, false, warn")
    ),
    "benchmark": _optional(SWITCH),
    "profiler": _optional(
        Rule(_is_object, "the _target_ of a Lightning profiler, as debug=profile does")
    ),
    "plugins": Rule(
        lambda value: (
            isinstance(value, list)
            and any(
                _is_object(plugin)
                and plugin["_target_"] == "tilewright.training.AtomicCheckpointIO"
                for plugin in value
            )
        ),
        "a list that contains tilewright.training.AtomicCheckpointIO",
    ),
}


def refusal(key: str) -> str | None:
    """Returns the message that refuses an argument of Lightning's Trainer, None for other keys."""
    advice = REFUSED.get(key)
    return None if advice is None else f"trainer.{key} is not supported: {advice}"


def check(settings: Mapping[str, Any]) -> None:
    """Checks the resolved settings of `trainer`.

    `precision` depends on the machine and is checked by `tilewright.hardware`.

    Raises:
        UserError: a key is refused, or its value is not possible.
    """
    for key, value in settings.items():
        message = refusal(key)
        if message is not None and value is not None and value != UNCHANGED.get(key):
            raise UserError(message)
        rule = RULES.get(key)
        if rule is not None and not rule.accepts(value):
            is_integral = isinstance(value, float) and value.is_integer()
            integer = f" (write {int(value)})" if is_integral and rule.accepts(int(value)) else ""
            raise UserError(
                f"trainer.{key}={format_value(value)} is not possible: set "
                f"{rule.description}{integer}"
            )
    precision = str(settings.get("precision"))
    if settings.get("gradient_scaling") == "per_block" and precision not in ("16", "16-mixed"):
        raise UserError(
            f"trainer.gradient_scaling=per_block has no effect with trainer.precision={precision}: "
            "set trainer.precision=16-mixed, or leave it out"
        )
    if (settings.get("min_steps") or 0) > settings["max_steps"]:
        raise UserError(
            f"trainer.min_steps={settings['min_steps']} is larger than "
            f"trainer.max_steps={settings['max_steps']}: lower it"
        )


def validations_note(settings: Mapping[str, Any]) -> str | None:
    """Returns a line for the log if a run is too short for a validation before its end."""
    interval, steps = settings["val_check_interval"], settings["max_steps"]
    accumulated = settings["accumulate_grad_batches"]
    if settings["limit_val_batches"] == 0 or interval <= steps * accumulated:
        return None
    factor = f" x trainer.accumulate_grad_batches={accumulated}" if accumulated > 1 else ""
    return (
        f"trainer.val_check_interval={interval} batches is more than the run has "
        f"(trainer.max_steps={steps}{factor}): the only validation follows the last update"
    )
