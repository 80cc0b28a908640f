"""How both stages set up their optimisers."""

import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tilewright.schedules import Schedule


def scheduled(optimiser: Optimizer, learning_rate: Schedule) -> OptimizerLRScheduler:
    """What `configure_optimizers` returns for a rate that follows a schedule of the update.

    The optimiser must have been made with lr=1: LambdaLR multiplies, and the schedule is absolute.
    """
    # A plain function: LambdaLR would put a callable object into the checkpoint, which then could
    # not be read with weights_only.
    scheduler = LambdaLR(optimiser, lambda step: learning_rate(step))
    return {
        "optimizer": optimiser,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
    }


def decay_matrices_only(module: nn.Module, weight_decay: float) -> list[dict]:
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
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def clip_variance(optimiser: Optimizer, most: float) -> None:
    """Bounds Adam's running variance from above after every update, by value (appendix B.2)."""

    def clip(optimiser: Optimizer, args: object, kwargs: object) -> None:
        variances = [state["exp_avg_sq"] for state in optimiser.state.values()]
        torch._foreach_clamp_max_(variances, most)

    optimiser.register_step_post_hook(clip)
