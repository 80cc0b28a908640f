"""GPU memory of a prior's training by arithmetic, for each model, strategy and number of GPUs.

Weights, gradients, Adam's moments and the average are in fp32, as in bf16-mixed. The activations of
a block are counted on a narrow block of the same parts. PyTorch's allocator is not included.
`measured=[prior_medium]` also trains that model on a CPU with dense attention, with one process and
with two sharded ones, and with adapters. `docs/scale.md` has these tables.

The table of fine-tuning counts converted priors on one GPU: how many images fit. It leaves out the
frozen text encoder and image tokenizer, whose outputs are cached.

    python benchmarks/memory.py [models=[prior_1b]] [gpus=[1,8]] [images=4] [any setting=value]
    python benchmarks/memory.py models=[] finetuned=[llamagen_256] rank=8
"""

import multiprocessing
import os
import resource
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

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
from tilewright.prior import CaptionStream, PlainStream, Stream, Transformer
from tilewright.prior.decoder import Decoder
from tilewright.prior.module import PriorModule
from tilewright.prior.pretrained import LlamaGenTransformer, MinDALLETransformer
from tilewright.training.adapters import LowRankAdapters, choose_layers
from tilewright.training.schedules import Constant
from tilewright.training.trainer import Trainer

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
    "images": 4,  # per GPU in one forward pass
    "precision": "bf16-mixed",  # or 32-true
    "finetuned": ["llamagen_256", "llamagen_512", "mindalle"],
    "rank": 16,  # of adapters
    "sizes": [16, 24],  # GB of the GPU for fine-tuning
    "reserve": 1.0,  # GB of it that kernels and PyTorch's allocator take
    "measured": [],  # models to train for comparison, in fp32 on this CPU
    "out": "logs/benchmarks/memory.json",
}
WORD = 4  # bytes of an fp32 value
GIB = 2**30
MOMENTS = {32: 2 * WORD, 8: 2 * (1 + WORD / 256)}  # bytes per value; 256 of 8 bits share a scale

PUBLIC: dict[str, Callable[[], Decoder]] = {  # of public sizes
    "llamagen_256": lambda: LlamaGenTransformer(CaptionStream(grid=16)),
    "llamagen_512": lambda: LlamaGenTransformer(CaptionStream(grid=32)),
    "mindalle": lambda: MinDALLETransformer(PlainStream(64, 16384, 16, 16384, padding_token=0)),
}


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU, by purpose."""

    weights: float
    gradients: float
    moments: float
    average: float
    exchange: float  # DDP's buckets; FSDP's gathered weights and their gradients
    casts: float  # bf16 weights that autocast keeps for the backward pass
    activations: float

    @property
    def total(self) -> float:
        return sum(asdict(self).values())


@lru_cache
def build(model: str, device: str = "meta", *overrides: str) -> Transformer:
    """Builds a prior over the paper's stream; on the meta device, without memory."""
    sizes = ["image_tokens.grid=32", "image_tokens.vocab=8192", "tokenizer.vocab_size=16384"]
    data = ["data=folder", "data.source.path=x", "tokenizer.length=256", "dvae=x", "run=x"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", ["stage=prior", f"model={model}", *sizes, *data, *overrides])
    with torch.device(device):
        return instantiate(config.model.network)


def count(module: Any) -> int:
    """Returns the number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_trained(network: Decoder, lora: LowRankAdapters | None) -> int:
    """Returns the number of trained parameters: all, or those of adapters."""
    if lora is None:
        return count(network)
    layers: list[Any] = [network.get_submodule(n) for n in choose_layers(network, lora.layers)]
    return sum(lora.rank * (layer.in_features + layer.out_features) for layer in layers)


def per_gpu(
    network: Decoder,
    strategy: str,
    gpus: int,
    images: int,
    precision: str = "bf16-mixed",
    checkpointing: bool | None = None,
    lora: LowRankAdapters | None = None,
    adam_bits: int = 32,
) -> Memory:
    """Returns the peak memory of a GPU in a training step.

    Args:
        strategy: "ddp" or "fsdp".
        images: images per GPU in one forward pass.
        checkpointing: keeps only the blocks' inputs; None is the network's own setting.
        lora: adapters to train. They are counted for "ddp" only.
        adam_bits: 8 for AdamW's moments in 8 bits.
    """
    checkpointing = network.checkpointing if checkpointing is None else checkpointing
    half = precision == "bf16-mixed"
    total, block = count(network), count(network.blocks[0])
    outside = total - count(network.blocks)
    trained = count_trained(network, lora)
    shards = gpus if strategy == "fsdp" else 1
    if strategy == "fsdp":  # two gathered blocks and a gradient, and all outside of blocks
        exchange = 2 * block * (WORD / 2 if half else WORD) + block * WORD + 2 * outside * WORD
        casts = outside * WORD / 2 if half else 0
    else:
        exchange = trained * WORD if gpus > 1 else 0
        # Autocast keeps the casts of trained weights. Each block keeps those of frozen ones.
        frozen = block * (1 if checkpointing else len(network.blocks)) if lora else 0
        casts = (trained + frozen) * WORD / 2 if half else 0
    return Memory(
        weights=(total + (trained if lora else 0)) * WORD / shards,
        gradients=trained * WORD / shards,
        moments=trained * MOMENTS[adam_bits] / shards,
        average=trained * WORD / shards,
        exchange=exchange,
        casts=casts,
        activations=images * activations(network, precision, checkpointing, lora),
    )


def activations(
    network: Decoder, precision: str, checkpointing: bool, lora: LowRankAdapters | None = None
) -> float:
    """Returns the bytes that the forward pass of one image keeps for the backward pass."""
    stream, kind = network.stream, kind_of(network, lora)
    of_block, of_logit = bytes_kept(kind, precision)
    states = stream.length * width(network)
    logits = stream.predicted_text * stream.text_classes + stream.image_length * stream.image_vocab
    kept = states * WORD * len(network.blocks) + states * of_block if checkpointing else 0
    return (kept or states * of_block * len(network.blocks)) + logits * of_logit


@dataclass(frozen=True)
class Kind:
    """Parts of a network's blocks, on which the bytes that they keep depend."""

    network: type[Decoder]
    width: int
    heads: int
    parts: tuple[tuple[str, Any], ...]  # arguments of a Transformer
    lora: LowRankAdapters | None

    def build(self, depth: int) -> Decoder:
        """Builds a network of a few blocks over a long text."""
        sizes: dict[str, Any] = {"dim": self.width, "depth": depth, "heads": self.heads}
        network: Decoder
        if self.network is LlamaGenTransformer:
            network = LlamaGenTransformer(CaptionStream(600, 64, 2, 16), **sizes)
        elif self.network is MinDALLETransformer:
            stream = PlainStream(600, 64, 2, 16, padding_token=0)
            network = MinDALLETransformer(stream, **sizes)
        else:
            paper = Stream(text_length=600, text_vocab=64, grid=2, image_vocab=16)
            network = Transformer(paper, pattern="full", **sizes, **dict(self.parts))
        if self.lora is not None:
            self.lora.add_to(network)
        return network


def kind_of(network: Decoder, lora: LowRankAdapters | None) -> Kind:
    """Returns the kind of a network, narrow if nothing depends on its width.

    A rank and LlamaGen's MLP do not grow in proportion to the width.
    """
    if isinstance(network, Transformer) and lora is None:
        return Kind(Transformer, 64, 1, parts_of(network), None)
    parts = parts_of(network) if isinstance(network, Transformer) else ()
    return Kind(type(network), width(network), network.blocks[0].attention.heads, parts, lora)


def width(network: Any) -> int:
    """Returns the width of a network's states."""
    return network.image_embedding.embedding_dim


def parts_of(network: Transformer) -> tuple[tuple[str, Any], ...]:
    """Returns the parts of a network's blocks as constructor arguments."""
    block: Any = network.blocks[0]
    return (
        ("norm", "layer" if isinstance(block.norm_mlp, nn.LayerNorm) else "rms"),
        ("mlp", "gelu" if hasattr(block.mlp, "up") else "swiglu"),
        ("positions", "learned" if network.learned_positions else "rotary"),
        ("qk_norm", not isinstance(block.attention.q_norm, nn.Identity)),
    )


@lru_cache
def bytes_kept(kind: Kind, precision: str) -> tuple[float, float]:
    """Returns the bytes kept for the backward pass, per value of a block's input and per logit.

    They are counted with dense attention, which keeps on a CPU what FlexAttention keeps on CUDA. A
    logit exists three times in the backward pass of the loss: the log-softmax and two gradients.
    """
    networks = [kind.build(depth) for depth in (1, 2)]
    one, two = (saved_bytes(network, precision) for network in networks)
    return (two - one) / (networks[0].stream.length * kind.width), 3 * WORD


def saved_bytes(network: Decoder, precision: str) -> int:
    """Returns the bytes that autograd keeps in a forward pass, without weights and their casts."""
    sizes: dict[int, int] = {}
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    shapes = {tuple(p.shape) for p in network.parameters()}
    kept = []  # keeps tensors alive, so that no memory is reused

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        is_weight = {tuple(tensor.shape), tuple(tensor.shape)[::-1]} & shapes
        if storage.data_ptr() not in weights and not is_weight:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    stream = network.stream
    if isinstance(stream, CaptionStream):
        text = torch.ones(1, stream.text_length, stream.features + 1)
    else:
        text = torch.zeros(1, stream.text_length, dtype=torch.long)
    image = torch.zeros(1, stream.grid, stream.grid, dtype=torch.long)
    half = precision == "bf16-mixed"
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        network(text, image)
    return sum(sizes.values())


def train_briefly(
    rank: int,
    processes: int,
    port: int,
    model: str,
    images: int,
    lora: LowRankAdapters | None,
    peaks: Any,
) -> None:
    """Runs two updates in one of the processes, and puts its peak bytes into a queue."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank))
    torch.set_num_threads(1)
    if lora is not None:
        lora.peft_config([])  # imports PEFT, which is not a part of the training
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    network = build(model, "cpu", "model.network.pattern=full", "model.network.checkpointing=false")
    if lora is not None:
        lora.add_to(network)
    stream = network.stream
    batch = {
        "text": torch.zeros(images, stream.text_length, dtype=torch.long),
        "image_tokens": torch.zeros(images, stream.grid, stream.grid, dtype=torch.long),
    }
    trainer = Trainer(
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
    rows: Any = [batch] * 2
    trainer.fit(PriorModule(network, Constant(1e-4)), DataLoader(rows, batch_size=None))
    peaks.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 2**10)


def measure_peak(
    model: str, processes: int, images: int, lora: LowRankAdapters | None = None
) -> float:
    """Returns the peak bytes of a process beyond those before it built the network."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    peaks = context.Queue()
    ranks = [
        context.Process(
            target=train_briefly, args=(rank, processes, port, model, images, lora, peaks)
        )
        for rank in range(processes)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    if any(process.exitcode for process in ranks):
        sys.exit(f"error: the training of {model} on {processes} processes failed")
    return max(peaks.get() for _ in ranks)


def compare_with_training(
    models: list[str], images: int, adapters: LowRankAdapters
) -> list[dict[str, Any]]:
    """Prints and returns counted and measured bytes on this CPU."""
    trainings = (("ddp", 1, None), ("fsdp", 2, None), ("ddp", 1, adapters))
    results = []
    for model in models:
        for strategy, processes, lora in trainings:
            # First, because the peak of a process begins at that of its parent.
            measured = measure_peak(model, processes, images, lora)
            memory = per_gpu(build(model), strategy, processes, images, "32-true", False, lora)
            counted = {"model": model, "strategy": strategy, "processes": processes}
            counted["trained"] = "all" if lora is None else "adapters"
            results.append({**counted, "counted": memory.total, "measured": measured})
    timing.print_table(
        f"GiB of a process, {images} images, 32-true, on a CPU",
        ["model", "strategy", "processes", "trained", "counted", "measured"],
        [
            [*map(str, (f["model"], f["strategy"], f["processes"], f["trained"]))]
            + [f"{f[name] / GIB:.2f}" for name in ("counted", "measured")]
            for f in results
        ],
    )
    return results


def count_fine_tuning(settings: Any) -> list[dict[str, Any]]:
    """Prints and returns the number of images that fit one GPU in fine-tuning."""
    adapters = LowRankAdapters(rank=settings.rank)
    results, rows = [], []
    for model in settings.finetuned:
        with torch.device("meta"):
            network = PUBLIC[model]()
        for lora, bits in ((None, 32), (None, 8), (adapters, 32), (adapters, 8)):
            row: dict[str, Any] = {"model": model, "rank": lora and lora.rank, "bits": bits}
            row |= {"parameters": count(network), "trained": count_trained(network, lora)}
            for checkpointing in (False, True):
                memory = per_gpu(
                    network, "ddp", 1, 1, settings.precision, checkpointing, lora, bits
                )
                fixed = memory.total - memory.activations
                kind = "checkpointing" if checkpointing else "plain"
                row[f"fixed_{kind}"], row[f"image_{kind}"] = fixed, memory.activations
                for size in settings.sizes:
                    free = (size - settings.reserve) * 1e9 - fixed
                    row[f"{size}_{kind}"] = max(0, int(free // memory.activations))
            results.append(row)
            trained = "adapters" if lora else "all"
            numbers = [f"{row['trained'] / 1e6:,.0f}", str(bits)]
            fits = [f"{row[f'{n}_plain']} / {row[f'{n}_checkpointing']}" for n in settings.sizes]
            rows.append([model, trained, *numbers, *fits])
    timing.print_table(
        f"Images per batch that fit, without / with checkpointing, {settings.precision}",
        ["model", "trained", "million", "bits", *(f"{size} GB" for size in settings.sizes)],
        rows,
    )
    return results


def main() -> None:
    settings = command_line.parse(DEFAULTS, __doc__)
    results, rows = [], []
    for model in settings.models:
        network = build(model)
        for strategy in settings.strategies:
            for gpus in settings.gpus:
                row = []
                for checkpointing in (False, True):
                    memory = per_gpu(
                        network,
                        strategy,
                        gpus,
                        settings.images,
                        settings.precision,
                        checkpointing,
                    )
                    results.append(
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
    if rows:
        timing.print_table(
            f"GiB on each GPU, {settings.images} images, {settings.precision}",
            ["model", "strategy", "GPUs", "no checkpointing", "checkpointing"],
            rows,
        )
    checked = []
    if settings.measured:
        adapters = LowRankAdapters(rank=settings.rank)
        checked = compare_with_training(list(settings.measured), settings.images, adapters)
    finetuned = count_fine_tuning(settings) if settings.finetuned else []
    timing.write(
        settings.out,
        results=results,
        finetuned=finetuned,
        checked=checked,
        settings=OmegaConf.to_container(settings),
    )


if __name__ == "__main__":
    main()
