"""Gradients that travel between processes in low rank: what `trainer=ddp_powersgd` does.

PowerSGD (Vogels et al. 2019) sends two thin factors in the place of a matrix, and adds what they
leave out to the next gradient. The paper trains its prior so (section 2.5), and leaves embeddings,
unembeddings, gains and biases as they are; here, all that lies outside the network's blocks, and
vectors. Error buffers and factors are in no checkpoint: a run that resumes begins with `start`
uncompressed updates again.
"""

from typing import Any

import torch
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, distributed, nn
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel


class PowerSGDStrategy(DDPStrategy):
    """DDP whose processes exchange the gradients of the blocks' matrices in low rank.

    A matrix that this would not make at least half as large is sent as it is.

    Args:
        rank: of the factors (the paper: 896 for a width of 3968).
        start: updates before the first that is compressed, 2 or more; while the gradient turns
            quickly, its errors of yesterday are of little use.
        arguments: those of `DDPStrategy`.
    """

    def __init__(self, rank: int = 32, start: int = 1000, **arguments: Any):
        super().__init__(**arguments)
        self.rank = rank
        self.start = start

    def configure_ddp(self) -> None:
        super().configure_ddp()
        # Lightning registers hooks on CUDA alone; gloo has done without that since PyTorch 1.9.
        assert isinstance(self.model, DistributedDataParallel)
        assert self.lightning_module is not None
        state = PowerSGDState(
            process_group=None,
            matrix_approximation_rank=self.rank,
            start_powerSGD_iter=self.start,
            orthogonalization_epsilon=1e-8,  # a gradient of zeros would become one of nans
        )
        compressed = block_parameters(self.lightning_module.network)  # type: ignore[arg-type]

        def power_sgd(
            state: PowerSGDState, bucket: distributed.GradBucket
        ) -> torch.futures.Future[Tensor]:
            return powerSGD_hook(state, _Bucket(bucket, compressed))  # type: ignore[arg-type]

        self.model.register_comm_hook(state, power_sgd)


def block_parameters(network: nn.Module) -> set[nn.Parameter]:
    """The parameters of a network's blocks."""
    return {
        parameter
        for part in network.modules()
        if isinstance(part, network.block_types)  # type: ignore[arg-type]
        for parameter in part.parameters()
    }


class _Bucket:
    """DDP's bucket; what is not to be compressed is a vector in it, which PowerSGD sends whole."""

    def __init__(self, bucket: distributed.GradBucket, compressed: set[nn.Parameter]):
        self._bucket = bucket
        self._compressed = compressed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bucket, name)

    def gradients(self) -> list[Tensor]:
        pairs = zip(self._bucket.gradients(), self._bucket.parameters(), strict=True)
        return [g if parameter in self._compressed else g.flatten() for g, parameter in pairs]
