"""How the stages set up their optimizers."""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tilewright.training.schedules import Schedule


def scheduled(optimizer: Optimizer, learning_rate: Schedule) -> OptimizerLRScheduler:
    """What `configure_optimizers` returns for a rate that follows a schedule of the update.

    The optimizer must have been made with lr=1: LambdaLR multiplies, and the schedule is absolute.
    """
    # A plain function: LambdaLR would put a callable object into the checkpoint, which then could
    # not be read with weights_only.
    scheduler = LambdaLR(optimizer, lambda step: learning_rate(step))
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
    }


def decay_matrices_only(module: nn.Module, weight_decay: float) -> tuple[dict, dict]:
    """Two parameter groups: the linear layers' matrices, which decay, and all the rest.

    Embeddings, gains and biases do not decay: decaying them gave other implementations' users
    brown pictures while the loss went on falling.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for layer in module.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            is_matrix = isinstance(layer, nn.Linear) and name == "weight"
            (matrices if is_matrix else rest).append(parameter)
    return (
        {"params": matrices, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    )


def adamw(
    parameters: Any,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    lr: float = 1.0,
) -> torch.optim.AdamW:
    """AdamW that updates in one pass over memory, where torch's default makes many.

    Not for weights with the channels innermost: that pass takes a parameter and its moments in the
    order of memory, and moments that were read from a checkpoint may lie otherwise.

    Args:
        parameters: them, or groups of them.
    """
    optimizer = torch.optim.AdamW(parameters, lr, betas, eps, weight_decay, fused=True)
    # It could undo the scaling of losses in fp16 as well, for which Lightning clips no gradients.
    optimizer._step_supports_amp_scaling = False
    return optimizer


class MuonAdamW(Optimizer):
    """Muon (Jordan et al. 2024) for the linear layers' matrices, AdamW for all the rest.

    Muon moves a matrix by its momentum's nearest orthogonal one, so that no direction of it waits
    for another. Its updates are scaled to the size of AdamW's (Liu et al. 2025): one learning rate
    serves both.

    Args:
        matrices, rest: two parameter groups, as of `decay_matrices_only`.
        lr: of both.
        betas, eps: AdamW's.
    """

    def __init__(
        self,
        matrices: dict[str, Any],
        rest: dict[str, Any],
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.96),
        eps: float = 1e-8,
    ):
        self._muon = torch.optim.Muon([matrices], lr, adjust_lr_fn="match_rms_adamw")
        self._adamw = adamw([rest], 0.0, betas, eps, lr)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})
        self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # a loaded state brings new groups
        self._share()

    def _share(self) -> None:
        """Makes the two work on this one's groups and state: they have none of their own."""
        for number, part in enumerate((self._muon, self._adamw)):
            part.param_groups = self.param_groups[number : number + 1]
            part.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._muon.step()
        self._adamw.step()
        return loss


def matrix_optimizer(
    module: nn.Module, weight_decay: float, betas: tuple[float, float], eps: float, muon: bool
) -> Optimizer:
    """What trains transformers, made with lr=1: AdamW of which only matrices decay, or Muon for
    these.
    """
    matrices, rest = decay_matrices_only(module, weight_decay)
    if muon:
        return MuonAdamW(matrices, rest, betas=betas, eps=eps)
    return adamw([matrices, rest], weight_decay, betas, eps)


def clip_variance(optimizer: Optimizer, most: float) -> None:
    """Bounds Adam's running variance from above after every update, by value (appendix B.2)."""

    def clip(optimizer: Optimizer, args: object, kwargs: object) -> None:
        variances = [state["exp_avg_sq"] for state in optimizer.state.values()]
        torch._foreach_clamp_max_(variances, most)

    optimizer.register_step_post_hook(clip)
