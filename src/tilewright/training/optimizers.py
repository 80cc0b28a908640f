"""Optimizers of the stages."""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tilewright.checks import check_number, is_number
from tilewright.errors import UserError
from tilewright.training.schedules import Schedule, check_schedule


class ScheduledRate(LambdaLR):
    """Learning rate that follows a schedule, which may change when a training resumes."""

    def __init__(self, optimizer: Optimizer, learning_rate: Schedule, factors: Sequence[float]):
        # LambdaLR saves callable objects in checkpoints, which weights_only=True refuses. It does
        # not save plain functions.
        def times(factor: float) -> Callable[[int], float]:
            return lambda step: factor * learning_rate(step)

        super().__init__(optimizer, [times(factor) for factor in factors])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the index of the update, and sets the rate of the next update."""
        super().load_state_dict(state_dict)
        self._last_lr = [
            base * schedule(self.last_epoch)
            for base, schedule in zip(self.base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def scheduled(
    optimizer: Optimizer, learning_rate: Schedule, factors: Sequence[float] | None = None
) -> OptimizerLRScheduler:
    """Returns the value of `configure_optimizers` for a learning rate that follows a schedule.

    Args:
        optimizer: created with lr=1, because LambdaLR multiplies its rate by the schedule.
        learning_rate: schedule of the update's index.
        factors: factor of the schedule for each parameter group. None is 1.
    """
    keep_settings(optimizer)
    factors = [1.0] * len(optimizer.param_groups) if factors is None else factors
    scheduler = ScheduledRate(optimizer, learning_rate, factors)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
    }


def check_optimizer(learning_rate: Any, weight_decay: Any, betas: Any, eps: Any) -> None:
    """Checks the settings of an optimizer. torch would check them only after the run has begun.

    Raises:
        UserError: a setting is not possible.
    """
    check_schedule("model.learning_rate", learning_rate)
    check_number("model.weight_decay", weight_decay, 0)
    check_number("model.eps", eps, 0)
    check_betas("model.betas", betas)


def check_betas(name: str, betas: Any) -> None:
    """Checks the betas of AdamW.

    Raises:
        UserError: they are not two numbers from 0 to below 1.
    """
    is_pair = isinstance(betas, Sequence) and len(betas) == 2
    if not is_pair or not all(is_number(beta, 0) and beta < 1 for beta in betas):
        raise UserError(f"{name}={betas} is not possible: set two numbers below 1")


def check_adam_bits(adam_bits: Any, muon: bool, variance_clip: float | None = None) -> None:
    """Checks `model.adam_bits`, the size of AdamW's moments.

    Raises:
        UserError: the size is not possible, does not fit the other settings, or needs a package
            that is not installed.
    """
    if adam_bits not in (32, 8):
        raise UserError(f"model.adam_bits={adam_bits} is not possible: set 32 or 8")
    if adam_bits == 32:
        return
    if muon:
        raise UserError(
            "model.adam_bits=8 is for AdamW, and Muon updates the matrices: set model.muon=false"
        )
    if variance_clip is not None:
        raise UserError(
            f"model.variance_clip={variance_clip} cannot bound a variance of 8 bits: set "
            "model.variance_clip=null or model.adam_bits=32"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "model.adam_bits=8 needs bitsandbytes: pip install 'tilewright[adam8bit]', or set "
            "model.adam_bits=32"
        )


def keep_settings(optimizer: Optimizer) -> None:
    """Makes an optimizer keep its settings, such as weight decay, when it loads a state.

    torch restores the saved settings, but a resumed run may have other ones.
    """
    state = {"params", "lr", "initial_lr"}
    settings = [
        {name: value for name, value in group.items() if name not in state}
        for group in optimizer.param_groups
    ]

    def restore(optimizer: Optimizer) -> None:
        for group, values in zip(optimizer.param_groups, settings, strict=True):
            group.update(values)

    optimizer.register_load_state_dict_post_hook(restore)


def weight_decay_groups(module: nn.Module, weight_decay: float) -> tuple[dict, dict]:
    """Returns two groups of trained parameters: matrices of linear layers, which decay, and others.

    Embeddings, gains and biases do not decay. In other implementations, decaying them made samples
    brown while the loss still fell.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            is_matrix = isinstance(layer, nn.Linear) and name == "weight"
            if parameter.requires_grad:
                (matrices if is_matrix else others).append(parameter)
    return (
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    )


def fused_adamw(
    parameters: Any,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    lr: float = 1.0,
) -> torch.optim.AdamW:
    """Creates an AdamW that updates in one pass over memory. torch's default makes several.

    It does not support channels-last weights. The fused kernel combines a parameter and its moments
    in memory order, and loaded moments may have another memory format.

    Args:
        parameters: parameters or parameter groups.
    """
    optimizer = torch.optim.AdamW(parameters, lr, betas, eps, weight_decay, fused=True)
    # Lightning refuses to clip gradients of optimizers that unscale fp16 gradients themselves.
    optimizer._step_supports_amp_scaling = False
    return optimizer


class MuonAdamW(Optimizer):
    """Muon (Jordan et al. 2024) for the matrices of linear layers, AdamW for all other parameters.

    Muon moves a matrix by the nearest orthogonal matrix to its momentum, so that all directions
    move equally fast. Its updates are scaled to the size of AdamW's (Liu et al. 2025), so that one
    learning rate serves both.

    Args:
        matrices, others: parameter groups of `weight_decay_groups`.
        lr: learning rate of both groups.
        betas, eps: AdamW's.
    """

    def __init__(
        self,
        matrices: dict[str, Any],
        others: dict[str, Any],
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.96),
        eps: float = 1e-8,
    ):
        self._muon = torch.optim.Muon([matrices], lr, adjust_lr_fn="match_rms_adamw")
        self._adamw = fused_adamw([others], 0.0, betas, eps, lr)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})
        self._share_state()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # replaces the groups
        self._share_state()

    def _share_state(self) -> None:
        """Makes both optimizers work on the groups and the state of this one."""
        for index, optimizer in enumerate((self._muon, self._adamw)):
            optimizer.param_groups = self.param_groups[index : index + 1]
            optimizer.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._muon.step()
        self._adamw.step()
        return loss


def transformer_optimizer(
    module: nn.Module,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    muon: bool,
    adam_bits: int = 32,
) -> Optimizer:
    """Creates a transformer's optimizer with lr=1: AdamW, or Muon for its matrices.

    Only matrices of linear layers decay.

    Args:
        adam_bits: 8 for AdamW's moments in 8 bits.
    """
    matrices, others = weight_decay_groups(module, weight_decay)
    if muon:
        return MuonAdamW(matrices, others, betas=betas, eps=eps)
    if adam_bits == 8:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports missing kernels
        from tilewright.training.adam8bit import EightBitAdamW

        return EightBitAdamW([matrices, others], 1.0, betas, eps, weight_decay)
    return fused_adamw([matrices, others], weight_decay, betas, eps)


def after_every_update(optimizer: Optimizer, action: Callable[[], None]) -> None:
    """Calls a function after every update."""
    optimizer.register_step_post_hook(lambda optimizer, args, kwargs: action())


def clip_variance(optimizer: Optimizer, max_value: float) -> None:
    """Clips Adam's running variance to `max_value` after every update (appendix B.2)."""

    def clip() -> None:
        variances = [state["exp_avg_sq"] for state in optimizer.state.values()]
        torch._foreach_clamp_max_(variances, max_value)

    after_every_update(optimizer, clip)
