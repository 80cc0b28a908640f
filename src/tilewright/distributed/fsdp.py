"""Fully sharded training with PyTorch's FSDP2 (`trainer=fsdp`).

Each process holds a shard of every parameter, gradient, optimizer state and averaged weight, cut
along the first dimension. FSDP2 gathers a block's weights while the block is computed. Weights
outside the blocks, such as embeddings and heads, stay gathered during the whole step.
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

from tilewright.distributed.sharded_checkpoint import (
    StoredTensor,
    load_stored_tensors,
    read_checkpoint,
    read_shards,
    write_shards,
)
from tilewright.errors import UserError

# Blocks gather and use their weights in bf16, and gradients are summed in fp32. Autocast casts
# everything else, as it does in a single process.
BLOCK_POLICIES = {
    "32-true": MixedPrecisionPolicy(),
    "bf16-mixed": MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
    ),
}
ROOT_POLICY = MixedPrecisionPolicy(cast_forward_inputs=False)


class FullyShardedStrategy(ModelParallelStrategy):
    """Lightning's FSDP2 strategy with checkpoints that every other strategy can read.

    The checkpoint has the layout of a single process: tensors are gathered when it is written and
    distributed when it is read. docs/scale.md lists what Lightning's own strategy cannot do.

    Args:
        on_meta: build the network without memory, then initialize it block by block, so that no
            process holds all of it. The initial weights differ from those of a normal start.
        sharded_checkpoints: each process writes its own shards (`sharded_checkpoint.py`). If False,
            the first process gathers everything in its memory and writes it.
        replicas: groups of processes that hold one copy of the model each (HSDP). With one replica
            per node, weights are only gathered within a node.
        kwargs: arguments of `ModelParallelStrategy`.
    """

    def __init__(
        self,
        on_meta: bool = False,
        sharded_checkpoints: bool = False,
        replicas: int = 1,
        **kwargs: Any,
    ):
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **kwargs)
        self.on_meta = on_meta
        self.sharded_checkpoints = sharded_checkpoints
        self.replicas = replicas

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def check_replicas(self) -> None:
        """Checks that the number of replicas divides the number of processes.

        Raises:
            UserError: the number of replicas is not a divisor.
        """
        if self.replicas < 1 or self.world_size % self.replicas:
            raise UserError(
                f"trainer.strategy.replicas={self.replicas} does not divide the {self.world_size} "
                "processes: set it to a divisor"
            )

    def check_precision(self) -> None:
        """Checks that blocks can compute in the trainer's precision.

        Raises:
            UserError: the precision is not a key of `BLOCK_POLICIES`.
        """
        precision = self.precision_plugin.precision
        if precision not in BLOCK_POLICIES:
            raise UserError(
                f"trainer=fsdp does not support trainer.precision={precision}: set it to "
                f"{' or '.join(BLOCK_POLICIES)}"
            )

    def setup_environment(self) -> None:
        """Joins the other processes, unless an earlier call has done so."""
        if self._device_mesh is None:
            self._setup_distributed()
            self.check_replicas()
            shape = {"replicate": self.replicas, "shard": self.world_size // self.replicas}
            if self.replicas == 1:
                del shape["replicate"]
            self._device_mesh = init_device_mesh(
                self.root_device.type, tuple(shape.values()), mesh_dim_names=tuple(shape)
            )

    def shard(self, module: pl.LightningModule) -> None:
        """Shards a module's network, and initializes weights that are on the meta device.

        Raises:
            UserError: the precision is not a key of `BLOCK_POLICIES`.
        """
        self.check_precision()
        precision = self.precision_plugin.precision
        network: Any = module.network
        # Shards of channels-last convolutions would not be contiguous.
        network.to(memory_format=torch.contiguous_format)
        for block in network.modules():
            if isinstance(block, network.block_types):
                _materialize(block, network)
                can_cast = self._can_cast(block) and not getattr(network, "shards_in_fp32", False)
                policy = BLOCK_POLICIES[precision if can_cast else "32-true"]
                fully_shard(block, mesh=self._device_mesh, mp_policy=policy)
        _materialize(network, network)
        fully_shard(
            module, mesh=self._device_mesh, mp_policy=ROOT_POLICY, reshard_after_forward=True
        )
        for step in ("training_step", "validation_step"):
            register_fsdp_forward_method(module, step)

    def _can_cast(self, block: nn.Module) -> bool:
        """Returns False for blocks with torch's LayerNorm on a CPU: it needs fp32 weights there."""
        has_layer_norm = any(type(layer) is nn.LayerNorm for layer in block.modules())
        return not has_layer_norm or self.root_device.type != "cpu"

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return Strategy.lightning_module_state_dict(self)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return Strategy.optimizer_state(self, optimizer)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Writes a checkpoint. All processes must call this.

        Raises:
            UserError: a process cannot write. The previous checkpoint is unchanged.
        """
        path = Path(self.broadcast(filepath))
        if self.sharded_checkpoints:
            folder = self.broadcast(f"{path.name}-{uuid.uuid4().hex[:8]}")
            checkpoint = write_shards(checkpoint, path.parent / folder)
        else:
            checkpoint = tree_map_only(DTensor, self._gather_on_first, checkpoint)
        Strategy.save_checkpoint(self, checkpoint, path, storage_options)

    def _gather_on_first(self, tensor: DTensor) -> Tensor | None:
        """Returns the full tensor on the CPU of the first process, and None on the others."""
        full = tensor.full_tensor()
        return full.cpu() if self.is_global_zero else None

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Reads a checkpoint of any strategy, of which each process keeps its own shards."""
        checkpoint = read_checkpoint(Path(self.broadcast(checkpoint_path)), mmap=True)
        targets: dict[StoredTensor, Tensor] = {}
        for state, name, like in self._entries(checkpoint):
            value = state[name]
            if isinstance(value, StoredTensor):
                state[name] = targets[value] = torch.empty_like(like)
            else:
                state[name] = _distribute_like(value, like)
        read_shards(targets)
        return load_stored_tensors(checkpoint)

    def _entries(self, checkpoint: dict[str, Any]) -> Iterator[tuple[dict, str, Tensor]]:
        """Yields (state, key, this process's tensor) of each saved tensor."""
        assert self.lightning_module is not None
        weights = self.lightning_module.state_dict()
        for states in ("state_dict", "current_model_state"):
            state = checkpoint.get(states, {})
            yield from ((state, name, weights[name]) for name in state if name in weights)
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
            indices = chain.from_iterable(group["params"] for group in saved["param_groups"])
            for index, parameter in zip(indices, parameters, strict=True):
                state = saved["state"].get(index, {})
                for name, value in state.items():
                    if value.shape == parameter.shape:  # not a step counter
                        yield state, name, parameter

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        Strategy.load_optimizer_state_dict(self, checkpoint)


def shard_module(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Shards a module that is not sharded yet if the strategy is `FullyShardedStrategy`."""
    strategy = trainer.strategy
    if isinstance(strategy, FullyShardedStrategy) and not isinstance(module, FSDPModule):
        strategy.shard(module)


def network_device(trainer: pl.Trainer) -> contextlib.AbstractContextManager:
    """Returns a context in which to build the network: the meta device if the strategy asks for it.

    Raises:
        UserError: the strategy's settings do not fit the number of processes.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, FullyShardedStrategy):
        return contextlib.nullcontext()
    strategy.check_replicas()
    strategy.check_precision()
    return torch.device("meta") if strategy.on_meta else contextlib.nullcontext()


@contextlib.contextmanager
def gathered_weights(trainer: pl.Trainer, module: nn.Module) -> Iterator[None]:
    """Context in which every process holds all weights and may compute alone.

    All processes must enter and leave it.
    """
    sharded = [part for part in module.modules() if isinstance(part, FSDPModule)]
    if not sharded:
        yield
        return
    _set_root(sharded[0])
    for part in sharded:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        with trainer.precision_plugin.forward_context():
            yield
    finally:
        for part in sharded:
            part.set_reshard_after_forward(True, recurse=False)
        # Reshards. It also forgets the order of this process's forward passes, which differs
        # between processes and would make the next backward pass prefetch in different orders.
        sharded[0].reset_iter_state()


def _set_root(module: FSDPModule) -> None:
    """Makes a module the FSDP2 root, as its first forward pass would.

    Without it, a submodule that runs first becomes a root, and the module's own forward pass fails.
    PyTorch has no public call for this.
    """
    module._get_fsdp_state()._lazy_init()


def full_tensor(tensor: Tensor) -> Tensor:
    """Gathers a tensor if it is sharded. All processes must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """Returns this process's shard of a tensor, or the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _distribute_like(value: Tensor, like: Tensor) -> Tensor:
    """Returns a copy of this process's shard of `value`, sharded like another tensor."""
    if isinstance(like, DTensor):
        value = value.to(like.device).contiguous()
        value = distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
    return value.clone()  # a view would keep the whole tensor in memory


def _materialize(part: nn.Module, network: Any) -> None:
    """Allocates weights that are on the meta device and initializes them as the constructor does.

    Raises:
        UserError: the network cannot initialize single modules.
    """
    initialized = []
    for module in part.modules():
        on_meta = [(n, p) for n, p in module.named_parameters(recurse=False) if p.is_meta]
        for name, parameter in on_meta:
            value = torch.empty_like(parameter, device="cpu")
            module.register_parameter(name, nn.Parameter(value))
        if on_meta:
            initialized.append(module)
    if initialized and not hasattr(network, "initialize"):
        raise UserError(
            f"trainer.strategy.on_meta=true is not supported by {type(network).__name__}, only by "
            "the prior: set it to false"
        )
    for module in initialized:
        module.reset_parameters()  # type: ignore[operator]
    if initialized:
        network.initialize(initialized)
