"""Mixed precision in fp16, with one gradient scale or with a scale per block (section 2.4).

fp16 holds numbers from 6e-8 to 65,504. Gradients of activations are smaller in a deep network, so
they are multiplied by a scale before they are rounded to fp16. An update whose gradients overflow
is skipped, and the scale is lowered.
"""

from collections.abc import Callable
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim import Optimizer

from tilewright.errors import UserError
from tilewright.training.trainer_settings import GRADIENT_SCALINGS

Scaling = Literal["global", "per_block"]


class Float16Precision(MixedPrecision):
    """Lightning's plugin of `precision="16-mixed"`, on any device.

    Lightning's own choice would compute in bf16 on a CPU.

    Args:
        device: type of the device, such as "cuda".
        scaling: "global" has one scale that grows and shrinks in large steps. "per_block" is the
            paper's: one scale for each block of the network, in small steps.

    Raises:
        UserError: the scaling is unknown.
    """

    def __init__(self, device: str, scaling: Scaling = "global"):
        if scaling not in GRADIENT_SCALINGS:
            raise UserError(
                f"gradient_scaling={scaling} is not possible: set {' or '.join(GRADIENT_SCALINGS)}"
            )
        scaler: Any = BlockScaler() if scaling == "per_block" else torch.amp.GradScaler(device)
        super().__init__("16-mixed", device, scaler)
        self.skipped_updates = 0

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Attaches the scales to the blocks of a stage's network.

        Raises:
            UserError: the stage is not a prior.
        """
        if isinstance(self.scaler, BlockScaler):
            network: Any = getattr(module, "network", None)
            if not hasattr(network, "stream"):
                raise UserError(
                    "trainer.gradient_scaling=per_block is for priors: set "
                    "trainer.gradient_scaling=global"
                )
            self.scaler.attach(network, network.block_types)
        return super().convert_module(module)

    @property
    def gradient_scale(self) -> float:
        """The scale of the gradients, or the smallest one."""
        assert self.scaler is not None
        return self.scaler.get_scale()

    def optimizer_step(  # type: ignore[override]
        self,
        optimizer: Optimizer,
        model: pl.LightningModule,
        closure: Callable[[], Any],
        **kwargs: Any,
    ) -> Any:
        """Updates the weights unless a gradient is not finite."""
        steps: list[None] = []
        hook = optimizer.register_step_post_hook(lambda *_: steps.append(None))
        try:
            return super().optimizer_step(optimizer, model, closure, **kwargs)
        finally:
            hook.remove()
            self.skipped_updates += not steps

    def state_dict(self) -> dict[str, Any]:
        return {"scaler": super().state_dict(), "skipped_updates": self.skipped_updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        scaler = state_dict["scaler"]
        if scaler.keys() == super().state_dict().keys():  # a resumed run may have another scaling
            super().load_state_dict(scaler)
        self.skipped_updates = state_dict["skipped_updates"]


class BlockScaler:
    """Gradient scale per block, with the interface of `torch.amp.GradScaler` (section 2.4).

    Gradients are scaled within a block only. Those of the residual path between the blocks, of
    embeddings and of heads stay unscaled in fp32. Entries that overflow within a block become 0
    where the gradient leaves it, so that the blocks below keep their scales.

    The paper's scales are for a loss that is the mean over all M processes, and are M times these.
    Here, each process computes the mean over its own rows, whose gradients are M times larger.
    """

    INITIAL = 2.0**13
    SMALLEST = 2.0**7
    LARGEST = 2.0**24
    GROWTH = 2.0 ** (1 / 1000)  # after an update
    BACKOFF = 0.5**0.5  # after gradients that are not finite

    def __init__(self) -> None:
        self.blocks: list[nn.Module] = []
        self.scales = torch.empty(0)
        self._is_finite: list[bool] = []  # of each block, and of all other parameters
        self._parameters: list[list[nn.Parameter]] = []

    def attach(self, network: nn.Module, block_types: tuple[type[nn.Module], ...]) -> None:
        """Scales the gradients in each block of a network."""
        self.blocks = [block for block in network.modules() if isinstance(block, block_types)]
        if len(self.scales) != len(self.blocks):  # otherwise, they come from a checkpoint
            self.scales = torch.full((len(self.blocks),), self.INITIAL)
        self._parameters = [list(block.parameters()) for block in self.blocks]
        for index, block in enumerate(self.blocks):
            self._attach_to(block, index)

    def _attach_to(self, block: nn.Module, index: int) -> None:
        def divide(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x, *others = inputs
            return _DivideGradient.apply(x, self._scale(index, x)), *others

        def multiply(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            return _MultiplyGradient.apply(output, self._scale(index, output))

        block.register_forward_pre_hook(divide)
        block.register_forward_hook(multiply)

    def _scale(self, index: int, x: Tensor) -> Tensor:
        """Returns the scale of a block, on the device of x."""
        if self.scales.device != x.device:
            self.scales = self.scales.to(x.device)
        return self.scales[index]

    def scale(self, loss: Tensor) -> Tensor:
        """Returns the loss itself, because gradients are scaled in the blocks only."""
        return loss

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divides the gradients of each block by its scale, and checks that they are finite."""
        gradients = [
            [parameter.grad for parameter in parameters if parameter.grad is not None]
            for parameters in self._parameters
        ]
        for index, block_gradients in enumerate(gradients):
            if block_gradients:
                scale = self._scale(index, block_gradients[0])
                torch._foreach_div_(block_gradients, scale)
        in_blocks = {id(gradient) for block in gradients for gradient in block}
        others = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and id(parameter.grad) not in in_blocks
        ]
        is_finite = [all_finite(tensors) for tensors in (*gradients, others) if tensors]
        flags = iter(torch.stack(is_finite).tolist())  # one transfer from the device
        self._is_finite = [next(flags) if tensors else True for tensors in (*gradients, others)]

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        """Updates the weights if all gradients are finite."""
        return optimizer.step(*args, **kwargs) if all(self._is_finite) else None

    def update(self) -> None:
        """Raises the scales of blocks with finite gradients, and lowers the others."""
        factors = [self.GROWTH if finite else self.BACKOFF for finite in self._is_finite[:-1]]
        scales = self.scales * torch.tensor(factors, device=self.scales.device)
        self.scales = scales.clamp(self.SMALLEST, self.LARGEST)

    def get_scale(self) -> float:
        """Returns the smallest scale."""
        return self.scales.min().item()

    def state_dict(self) -> dict[str, Tensor]:
        return {"scales": self.scales.cpu()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        self.scales = state_dict["scales"].to(self.scales.device)


def all_finite(tensors: list[Tensor]) -> Tensor:
    """Returns a boolean tensor []: True if no entry is infinite or nan."""
    norms = torch.stack(torch._foreach_norm(tensors, torch.inf))
    return norms.isfinite().all()


class _DivideGradient(torch.autograd.Function):
    """Identity whose gradient is divided by a scale, in fp32. Entries that overflowed become 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        return torch.nan_to_num(gradients[0] / scale, 0.0, 0.0, 0.0), None


class _MultiplyGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a scale."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        return gradients[0] * scale, None
