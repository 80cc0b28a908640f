"""Weights in shards, one on each process: what `trainer=fsdp` does, by PyTorch's FSDP2.

Every parameter, gradient, moment of Adam and average exists once, cut along its first dimension, or
once in each group of processes that share it out (HSDP).
A block's weights are gathered while the block is computed, forward and backward, and what lies
outside the blocks, the embeddings and heads, during the whole step.
"""

import contextlib
import uuid
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from tilewright.distributed import sharded_checkpoint
from tilewright.errors import UserError

# In bf16 the weights of blocks are gathered, and so computed with, in bf16; the gradients of all
# processes are added in fp32. Autocast decides for all else, as it does on one process.
BLOCKS = {
    "32-true": MixedPrecisionPolicy(),
    "bf16-mixed": MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
    ),
}
OUTSIDE = MixedPrecisionPolicy(cast_forward_inputs=False)


class FullyShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, over all processes and with checkpoints like any other's.

    Lightning's own writes Adam's state by the names of parameters, reads the state of another
    strategy in the order of the model and not of the optimizer, and knows nothing of averaged
    weights. Here a checkpoint is that of one process: gathered when it is written, and shared out
    when it is read, so that any number of processes, with any strategy, reads any other's.

    Args:
        on_meta: build the network without memory for its weights, and draw them block by block: it
            then never exists whole on one process. They are other numbers than without.
        sharded_checkpoints: each process writes its own shards (`shards.py`); otherwise the first
            gathers and writes all, in its own memory.
        copies: of the whole, each of which an equal part of the processes, in their order, shares
            out; with as many as nodes, the processes of a node (HSDP).
        arguments: those of `ModelParallelStrategy`.
    """

    def __init__(
        self,
        on_meta: bool = False,
        sharded_checkpoints: bool = False,
        copies: int = 1,
        **arguments: Any,
    ):
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **arguments)
        self.on_meta = on_meta
        self.sharded_checkpoints = sharded_checkpoints
        self.copies = copies

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    @property
    def parts(self) -> int:
        """How many processes share out a copy.

        Raises:
            UserError: the processes cannot be divided so.
        """
        if self.copies < 1 or self.world_size % self.copies:
            raise UserError(
                f"trainer.strategy.copies={self.copies} has to divide the processes, which are "
                f"{self.world_size}"
            )
        return self.world_size // self.copies

    def setup_environment(self) -> None:
        """Joins the other processes; a process that waits for the first one calls it twice."""
        if self._device_mesh is None:
            self._setup_distributed()
            shape = {"copies": self.copies, "parts": self.parts}
            if self.copies == 1:
                del shape["copies"]
            self._device_mesh = init_device_mesh(
                self.root_device.type, tuple(shape.values()), mesh_dim_names=tuple(shape)
            )

    def shard(self, module: pl.LightningModule) -> None:
        """Shards a module's network, and draws its weights where it was built on meta.

        Raises:
            UserError: its precision is not one of `BLOCKS`.
        """
        precision = self.precision_plugin.precision
        if precision not in BLOCKS:
            raise UserError(
                f"trainer=fsdp cannot compute in trainer.precision={precision}: set it to one of "
                f"{', '.join(BLOCKS)}"
            )
        network: Any = module.network
        # Of convolutions with the channels innermost no share lies in one piece.
        network.to(memory_format=torch.contiguous_format)
        for part in network.modules():
            if isinstance(part, network.block_types):
                _materialize(part, network)
                policy = BLOCKS[precision if self._casts(part) else "32-true"]
                fully_shard(part, mesh=self._device_mesh, mp_policy=policy)
        _materialize(network, network)
        fully_shard(module, mesh=self._device_mesh, mp_policy=OUTSIDE, reshard_after_forward=True)
        for step in ("training_step", "validation_step"):
            register_fsdp_forward_method(module, step)

    def _casts(self, block: nn.Module) -> bool:
        """Whether a block computes with weights in bf16: on a CPU, torch's LayerNorm does not."""
        plain = any(type(part) is nn.LayerNorm for part in block.modules())
        return not plain or self.root_device.type != "cpu"

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return Strategy.lightning_module_state_dict(self)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return Strategy.optimizer_state(self, optimizer)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Writes a checkpoint; all processes have to take part.

        Raises:
            UserError: some process cannot write its shards; the checkpoint before is still there.
        """
        path = Path(self.broadcast(filepath))
        if self.sharded_checkpoints:
            folder = self.broadcast(f"{path.name}-{uuid.uuid4().hex[:8]}")
            checkpoint, own = sharded_checkpoint.cut(checkpoint, folder, self.parts)
            self._write(own, path.parent / folder)
        else:
            checkpoint = tree_map_only(DTensor, self._gathered, checkpoint)
        Strategy.save_checkpoint(self, checkpoint, path, storage_options)

    def _gathered(self, shard: DTensor) -> Tensor | None:
        """A whole tensor on the first process, nothing on the others."""
        tensor = shard.full_tensor()
        return tensor.cpu() if self.is_global_zero else None

    def _write(self, own: list[Tensor], folder: Path) -> None:
        reason = ""
        try:
            if self.global_rank < self.parts:  # the processes of the first copy
                folder.mkdir(parents=True, exist_ok=True)
                torch.save(own, folder / f"{self.global_rank}.pt")
        except (OSError, RuntimeError) as error:
            reason = str(error.__context__ or error).splitlines()[0]
        if not self.reduce_boolean_decision(not reason):
            raise UserError(
                f"the shards {folder} cannot be written ({reason or 'by another process'}); "
                "the checkpoint before them is untouched"
            )

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Any strategy's checkpoint, of which each process has read its own shards."""
        assert self.lightning_module is not None
        checkpoint = sharded_checkpoint.read(Path(self.broadcast(checkpoint_path)), mmap=True)
        own = self.lightning_module.state_dict()
        for states in ("state_dict", "current_model_state"):
            for name, value in checkpoint.get(states, {}).items():
                if name in own:
                    checkpoint[states][name] = share_of(value, own[name])
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
            numbers = chain.from_iterable(group["params"] for group in saved["param_groups"])
            for number, parameter in zip(numbers, parameters, strict=True):
                state = saved["state"].get(number, {})
                for name, value in state.items():
                    is_moment = value.shape == parameter.shape
                    state[name] = share_of(value, parameter if is_moment else value)
        return checkpoint

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        Strategy.load_optimizer_state_dict(self, checkpoint)


def shard(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Shards a module where the trainer's strategy does that, and it has not been done yet."""
    strategy = trainer.strategy
    if isinstance(strategy, FullyShardedStrategy) and not isinstance(module, FSDPModule):
        strategy.shard(module)


def building(trainer: pl.Trainer) -> contextlib.AbstractContextManager:
    """In it networks are built, without memory where the strategy wants that.

    Raises:
        UserError: the processes cannot share the network out as the strategy wants.
    """
    strategy = trainer.strategy
    if isinstance(strategy, FullyShardedStrategy) and strategy.parts and strategy.on_meta:
        return torch.device("meta")
    return contextlib.nullcontext()


@contextlib.contextmanager
def gathered(trainer: pl.Trainer, module: nn.Module) -> Iterator[None]:
    """In it every process has all of a module's weights, and may compute what others do not.

    All processes have to enter and leave it.
    """
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    if not parts:
        yield
        return
    parts[0]._get_fsdp_state()._lazy_init()  # as the first step does, before which this may be
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        with trainer.precision_plugin.forward_context():
            yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
        # Reshards; and what this process has computed alone must not count as an order in which all
        # gather weights ahead in the next backward pass, where they would wait for each other.
        parts[0].reset_iter_state()


def whole(value: Tensor) -> Tensor:
    """A tensor whose shards all processes have; all of them have to call this."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def share_of(value: Tensor | sharded_checkpoint.Shards, like: Tensor) -> Tensor:
    """A copy of this process's shard of a tensor that is cut as another one is.

    Where that one is whole, of all of it. A view would hold on to what it is cut from.
    """
    value = sharded_checkpoint.joined(value)
    assert isinstance(value, Tensor)
    if not isinstance(like, DTensor):
        return value.clone()
    value = value.to(like.device).contiguous()
    share = distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return share.clone()


def _materialize(part: nn.Module, network: Any) -> None:
    """Gives weights on meta their memory, and draws them as the network's constructor does."""
    fresh = []
    for module in part.modules():
        empty = [(n, p) for n, p in module.named_parameters(recurse=False) if p.is_meta]
        for name, parameter in empty:
            value = torch.empty_like(parameter, device="cpu")
            module.register_parameter(name, nn.Parameter(value))
        if empty:
            fresh.append(module)
    if fresh and not hasattr(network, "initialize"):
        raise UserError(
            f"trainer.strategy.on_meta=true is for the prior; leave it out for this "
            f"{type(network).__name__}"
        )
    for module in fresh:
        module.reset_parameters()  # type: ignore[operator]
    if fresh:
        network.initialize(fresh)
