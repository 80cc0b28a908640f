"""Low-rank gradient exchange between processes (`trainer=ddp_powersgd`).

PowerSGD (Vogels et al. 2019) sends two thin factors of a gradient matrix and adds what they leave
out to the next gradient. As in the paper (section 2.5), embeddings, unembeddings, gains and biases
are not compressed. Checkpoints hold neither error buffers nor factors: a resumed run starts again
with `warmup_updates` uncompressed updates.
"""

from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from tilewright.checks import check_whole


class PowerSGDStrategy(DDPStrategy):
    """DDP that exchanges the gradients of the blocks' matrices in low rank.

    A matrix is not compressed if that would save less than half of its size.

    Args:
        rank: rank of the factors (the paper: 896 for a width of 3968).
        warmup_updates: updates before the first compressed one, at least 2. Early gradients change
            quickly, so that the errors of earlier updates do not help.
        kwargs: arguments of `DDPStrategy`.

    Raises:
        UserError: a number is not possible.
    """

    def __init__(self, rank: int = 32, warmup_updates: int = 1000, **kwargs: Any):
        check_whole("trainer.strategy.rank", rank)
        check_whole("trainer.strategy.warmup_updates", warmup_updates, 2)
        super().__init__(**kwargs)
        self.rank = rank
        self.warmup_updates = warmup_updates

    def configure_ddp(self) -> None:
        super().configure_ddp()
        # Lightning registers communication hooks on CUDA only. gloo supports them too.
        assert isinstance(self.model, DistributedDataParallel)
        assert self.lightning_module is not None
        state = PowerSGDState(
            process_group=None,
            matrix_approximation_rank=self.rank,
            start_powerSGD_iter=self.warmup_updates,
            orthogonalization_epsilon=1e-8,  # without it, gradients of zeros become NaN
        )
        compressed = block_parameters(self.lightning_module.network)  # type: ignore[arg-type]

        def power_sgd(
            state: PowerSGDState, bucket: distributed.GradBucket
        ) -> torch.futures.Future[Tensor]:
            return powerSGD_hook(state, _Bucket(bucket, compressed))  # type: ignore[arg-type]

        self.model.register_comm_hook(state, power_sgd)


def block_parameters(network: nn.Module) -> set[nn.Parameter]:
    """Returns the parameters of a network's blocks."""
    return {
        parameter
        for module in network.modules()
        if isinstance(module, network.block_types)  # type: ignore[arg-type]
        for parameter in module.parameters()
    }


class _Bucket:
    """DDP's bucket with flattened uncompressed gradients: PowerSGD sends vectors unchanged."""

    def __init__(self, bucket: distributed.GradBucket, compressed: set[nn.Parameter]):
        self._bucket = bucket
        self._compressed = compressed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bucket, name)

    def gradients(self) -> list[Tensor]:
        pairs = zip(self._bucket.gradients(), self._bucket.parameters(), strict=True)
        return [g if parameter in self._compressed else g.flatten() for g, parameter in pairs]
