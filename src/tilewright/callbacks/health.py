"""Warnings about a training that goes wrong, with the setting that most likely helps."""

import operator
from typing import Any

import pytorch_lightning as pl
import torch
from torch.nn.utils import get_total_norm

from tilewright.callbacks.problems import ProblemCallback
from tilewright.checks import check_number, check_whole
from tilewright.distributed.fsdp import full_tensor
from tilewright.dvae.quantizers.base import GumbelSoftmax
from tilewright.training.schedules import find_key, find_peak


class TrainingHealth(ProblemCallback):
    """Logs the gradient norm, and warns about a non-finite loss and a collapsing codebook.

    Each warning appears once.

    Args:
        stop: end the training at the first problem.
        min_codebook_usage: share of the codes below which the codebook counts as collapsing. Stages
            without a codebook are not checked.
        codebook_grace_updates: updates before the first check of the codebook, whose usage
            is always low at first.
    """

    def __init__(
        self,
        stop: bool = False,
        min_codebook_usage: float = 0.05,
        codebook_grace_updates: int = 1000,
    ):
        super().__init__("callbacks.health.stop", stop)
        check_number("callbacks.health.min_codebook_usage", min_codebook_usage, 0, 1)
        check_whole("callbacks.health.codebook_grace_updates", codebook_grace_updates, 0)
        self.min_codebook_usage = min_codebook_usage
        self.codebook_grace_updates = codebook_grace_updates

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        # This update is not counted yet, but the loggers count it.
        if (trainer.global_step + 1) % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        pl_module.log("train/gradient_norm", full_tensor(get_total_norm(gradients)))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return  # reading the loss synchronizes a GPU
        is_finite = bool(torch.isfinite(outputs["loss"]))
        if not trainer.strategy.reduce_boolean_decision(is_finite):
            advice = loss_advice(trainer, pl_module)
            self.report(trainer, "loss", f"the loss is not finite: {advice}")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        usage = trainer.callback_metrics.get("codebook/usage")
        if usage is None or trainer.global_step < self.codebook_grace_updates:
            return
        if usage < self.min_codebook_usage:
            self.report(
                trainer,
                "codebook",
                f"the codebook collapses, with {float(usage):.1%} of the codes in use: "
                f"{_codebook_advice(pl_module)}",
            )


def loss_advice(trainer: pl.Trainer, module: pl.LightningModule) -> str:
    """Returns the settings that most likely prevent a loss that is not finite."""
    clip = trainer.gradient_clip_val
    advice = [
        f"lower {_peak(module, 'learning_rate')}",
        f"lower trainer.gradient_clip_val={clip}" if clip else "set trainer.gradient_clip_val=1.0",
    ]
    if trainer.precision != "32-true":
        advice.append("set trainer.precision=32-true")
    return " or ".join(advice)


def _codebook_advice(module: pl.LightningModule) -> str:
    quantizer = getattr(getattr(module, "network", None), "quantizer", None)
    if isinstance(quantizer, GumbelSoftmax):
        advice = f"raise {_peak(module, 'beta')}"
        if not str(find_peak(module.beta)).endswith("end"):  # otherwise, more steps would lower it
            advice += f" and {_steps(module, 'beta')}"
        return f"{advice}, or {_steps(module, 'temperature')}"
    return "start a new run with a smaller model.network.num_tokens"


def _peak(module: pl.LightningModule, name: str) -> str:
    """Returns the key and the highest value of a schedule, such as `model.beta.start=10.0`."""
    return _setting(module, name, find_peak(getattr(module, name, None)))


def _steps(module: pl.LightningModule, name: str) -> str:
    """Returns the key and the length of a schedule, such as `model.beta.steps=2400`."""
    return _setting(module, name, find_key(getattr(module, name, None), {"steps"}))


def _setting(module: pl.LightningModule, name: str, key: str | None) -> str:
    if key is None:
        return f"model.{name}"
    return f"model.{name}.{key}={operator.attrgetter(key)(getattr(module, name))}"
