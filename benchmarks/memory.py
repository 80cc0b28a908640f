"""What training a prior takes of a GPU's memory, by arithmetic: model, strategy, number of GPUs.

In bf16-mixed, as on GPUs: weights, gradients, Adam's moments and the average in fp32, what the
backward pass needs of a block counted on a narrow one of the same parts. What PyTorch's allocator
and libraries take comes on top. `measured=[prior_medium]` trains that one, on a CPU and with dense
attention, by one process and by two that share the weights. `docs/scale.md` has both tables.

    python benchmarks/memory.py [models=[prior_1b]] [gpus=[1,8]] [pictures=4] [any setting=value]
"""

import multiprocessing
import os
import resource
import socket
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import pytorch_lightning as pl
import settings as command_line
import timing
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tilewright.callbacks.ema import AveragedWeights
from tilewright.cli.app import CONF
from tilewright.distributed.fsdp import FullyShardedStrategy
from tilewright.prior import Stream, Transformer
from tilewright.prior.module import PriorModule
from tilewright.training.schedules import Constant

DEFAULTS = {
    "models": [
        "prior_small",
        "prior_modern",
        "prior_medium",
        "prior_300m",
        "prior_1b",
        "prior_dalle12b",
    ],
    "strategies": ["ddp", "fsdp"],
    "gpus": [1, 8, 64],
    "pictures": 4,  # at once, on each GPU
    "precision": "bf16-mixed",  # or 32-true
    "measured": [],  # models that are also trained, in fp32 on this CPU
    "out": "logs/benchmarks/memory.json",
}
WORD = 4  # bytes of a number in fp32
GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU."""

    weights: float
    gradients: float
    moments: float
    average: float
    exchange: float  # DDP's buckets; FSDP's gathered weights and their gradients
    casts: float  # weights in bf16, which autocast keeps for the backward pass
    activations: float

    @property
    def total(self) -> float:
        return sum(asdict(self).values())


@lru_cache
def built(model: str, device: str = "meta", *overrides: str) -> Transformer:
    """A prior of the paper's stream; on meta, without memory for its weights."""
    sizes = ["image_tokens.grid=32", "image_tokens.vocab=8192", "tokenizer.vocab_size=16384"]
    data = ["data=folder", "data.source.path=x", "tokenizer.length=256", "dvae=x", "run=x"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["stage=prior", f"model={model}", *sizes, *data, *overrides])
    with torch.device(device):
        return instantiate(config.model.network)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def per_gpu(
    network: Transformer,
    strategy: str,
    gpus: int,
    pictures: int,
    precision: str = "bf16-mixed",
    checkpointing: bool | None = None,
) -> Memory:
    """What a GPU holds at the fullest moment of a step, at the end of the forward pass or after.

    Args:
        strategy: "ddp" or "fsdp".
        pictures: that a GPU computes at once.
        checkpointing: keep the blocks' inputs alone; None is the network's own setting.
    """
    half = precision == "bf16-mixed"
    total, block = count(network), count(network.blocks[0])
    outside = total - count(network.blocks)
    shards = gpus if strategy == "fsdp" else 1
    if strategy == "fsdp":  # the block at hand and the next in bf16, the rest of it whole in fp32
        exchange = 2 * block * (WORD / 2 if half else WORD) + block * WORD + 2 * outside * WORD
        casts = outside * WORD / 2 if half else 0
    else:
        exchange = total * WORD if gpus > 1 else 0
        casts = total * WORD / 2 if half else 0
    own = total * WORD / shards
    return Memory(
        weights=own,
        gradients=own,
        moments=2 * own,
        average=own,
        exchange=exchange,
        casts=casts,
        activations=pictures * activations(network, precision, checkpointing),
    )


def activations(
    network: Transformer, precision: str = "bf16-mixed", checkpointing: bool | None = None
) -> float:
    """Bytes that a picture's forward pass leaves for its backward pass."""
    stream, dim = network.stream, network.text_embedding.embedding_dim
    checkpointing = network.checkpointing if checkpointing is None else checkpointing
    of_block, of_logit = rates(type_of(network), precision)
    states = stream.length * dim
    logits = stream.text_length * stream.text_classes + stream.image_length * stream.image_vocab
    kept = states * WORD * len(network.blocks) + states * of_block if checkpointing else 0
    return (kept or states * of_block * len(network.blocks)) + logits * of_logit


def type_of(network: Transformer) -> tuple[tuple[str, Any], ...]:
    """The parts of a network's blocks, as arguments of its constructor."""
    block: Any = network.blocks[0]
    return (
        ("norm", "layer" if isinstance(block.norm_mlp, nn.LayerNorm) else "rms"),
        ("mlp", "gelu" if hasattr(block.mlp, "up") else "swiglu"),
        ("positions", "learned" if network.learned_positions else "rotary"),
        ("qk_norm", not isinstance(block.attention.q_norm, nn.Identity)),
    )


@lru_cache
def rates(parts: tuple[tuple[str, Any], ...], precision: str) -> tuple[float, float]:
    """Bytes for the backward pass per number of a block's input, and per logit.

    Counted on dense attention, which on a CPU keeps what FlexAttention keeps on CUDA. A logit is
    there three times while the loss is differentiated: the log-softmax and two gradients.
    """
    stream = Stream(text_length=600, text_vocab=64, grid=2, image_vocab=16)
    width = 64
    held = []
    for depth in (1, 2):
        network = Transformer(
            stream, dim=width, depth=depth, heads=1, pattern="full", **dict(parts)
        )
        held.append(saved(network, stream, precision))
    of_block = (held[1] - held[0]) / (stream.length * width)
    return of_block, 3 * WORD


def saved(network: Transformer, stream: Stream, precision: str) -> int:
    """Bytes of all that autograd keeps of one forward pass, less the weights and their casts."""
    found: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    shapes = {tuple(p.shape) for p in network.parameters()}
    kept = []  # so that no memory is given to a second tensor

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        own = {tuple(tensor.shape), tuple(tensor.shape)[::-1]} & shapes
        if storage.data_ptr() not in weights and not own:
            found[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    text = torch.zeros(1, stream.text_length, dtype=torch.long)
    image = torch.zeros(1, stream.grid, stream.grid, dtype=torch.long)
    half = precision == "bf16-mixed"
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        network(text, image)
    return sum(found.values())


def train_briefly(
    rank: int, processes: int, port: int, model: str, pictures: int, peaks: Any
) -> None:
    """Two updates by one of the processes; puts the bytes that they took at most."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    network = built(model, "cpu", "model.network.pattern=full", "model.network.checkpointing=false")
    stream = network.stream
    batch = {
        "text_tokens": torch.zeros(pictures, stream.text_length, dtype=torch.long),
        "image_tokens": torch.zeros(pictures, stream.grid, stream.grid, dtype=torch.long),
    }
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=FullyShardedStrategy() if processes > 1 else "auto",
        max_steps=2,
        limit_val_batches=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[AveragedWeights(0.99)],
    )
    trainer.fit(PriorModule(network, Constant(1e-4)), DataLoader([batch] * 2, batch_size=None))
    peaks.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 2**10)


def peak(model: str, processes: int, pictures: int) -> float:
    """The most bytes that a process took, beyond those before it had a network."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    peaks = context.Queue()
    ranks = [
        context.Process(target=train_briefly, args=(rank, processes, port, model, pictures, peaks))
        for rank in range(processes)
    ]
    for one in ranks:
        one.start()
    found = [peaks.get() for _ in ranks]
    for one in ranks:
        one.join()
    return max(found)


def check(models: list[str], pictures: int) -> list[dict[str, Any]]:
    """Arithmetic against measurement, on this CPU."""
    figures = []
    for model in models:
        for strategy, processes in (("ddp", 1), ("fsdp", 2)):
            memory = per_gpu(built(model), strategy, processes, pictures, "32-true", False)
            measured = peak(model, processes, pictures)
            counted = {"model": model, "strategy": strategy, "processes": processes}
            figures.append({**counted, "counted": memory.total, "measured": measured})
    timing.show(
        f"GiB of a process, {pictures} pictures at once, 32-true, on a CPU",
        ["model", "strategy", "processes", "counted", "measured"],
        [
            [*map(str, (f["model"], f["strategy"], f["processes"]))]
            + [f"{f[name] / GIB:.2f}" for name in ("counted", "measured")]
            for f in figures
        ],
    )
    return figures


def main() -> None:
    settings = command_line.read_own(DEFAULTS, __doc__)
    figures, rows = [], []
    for model in settings.models:
        network = built(model)
        for strategy in settings.strategies:
            for gpus in settings.gpus:
                row = []
                for checkpointing in (False, True):
                    memory = per_gpu(
                        network,
                        strategy,
                        gpus,
                        settings.pictures,
                        settings.precision,
                        checkpointing,
                    )
                    figures.append(
                        {
                            "model": model,
                            "strategy": strategy,
                            "gpus": gpus,
                            "checkpointing": checkpointing,
                            **asdict(memory),
                        }
                    )
                    row.append(memory.total)
                rows.append([model, strategy, str(gpus), *(f"{x / GIB:,.1f}" for x in row)])
    timing.show(
        f"GiB on each GPU, {settings.pictures} pictures at once, {settings.precision}",
        ["model", "strategy", "GPUs", "all kept", "checkpointing"],
        rows,
    )
    checked = check(list(settings.measured), settings.pictures) if settings.measured else []
    timing.write(
        settings.out,
        figures=figures,
        checked=checked,
        settings=OmegaConf.to_container(settings),
    )


if __name__ == "__main__":
    main()
