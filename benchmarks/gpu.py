"""Training, sampling and the dVAE on a GPU, against the limits of the hardware.

    python benchmarks/gpu.py [parts=[decoding]] [any setting=value]
    python benchmarks/gpu.py dry=true  # tiny sizes on any machine, to test the script

Peaks come from the data sheet of known cards, else from one large product and one large copy. A
part that runs out of memory is reported, and the others continue.
"""

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import memory
import settings as command_line
import timing
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

import training
from tilewright.prior import Sampling, Transformer, attention, sample, with_low_precision_weights
from tilewright.prior.module import PriorModule
from tilewright.prior.patterns import cache_slots, dense_mask
from tilewright.training.schedules import Constant
from tilewright.training.stage import StageModule

DEFAULTS = {
    "parts": [
        "attention",
        "utilization",
        "kernels",
        "checkpointing",
        "decoding",
        "candidates",
        "dvae",
    ],
    "dry": False,
    "attention": {"model": "prior_300m", "batch_size": 8},
    "utilization": {"models": ["prior_300m", "prior_1b"], "batch_size": 16},
    "kernels": {"model": "prior_1b", "batch_size": 16},
    "checkpointing": {"model": "prior_1b", "batch_size": 4},
    "decoding": {"model": "prior_1b", "weights": ["float32", "bfloat16"], "overrides": []},
    "candidates": {"model": "prior_300m", "numbers": [64, 512], "weights": "bfloat16"},
    "dvae": {"model": "dvae_paper", "image_size": 256, "batch_size": 8},
    "compile": True,
    "rounds": 5,
    "warmup": 3,
    "out": "logs/benchmarks/gpu.json",
}
DRY = {
    "attention": {"batch_size": 2},
    "utilization": {"batch_size": 2},
    "kernels": {"batch_size": 2},
    "checkpointing": {"batch_size": 2},
    "candidates": {"numbers": [2, 3]},
    "dvae": {"model": "dvae_small", "image_size": 16, "batch_size": 2},
    "compile": False,
    "rounds": 1,
    "warmup": 0,
}
DRY_PRIOR = [
    "model.network.dim=32", "model.network.depth=3", "model.network.heads=2",
    "image_tokens.grid=4", "image_tokens.vocab=8", "tokenizer.length=4", "tokenizer.vocab_size=300",
]  # fmt: skip
# By a part of the card's name: dense bf16 flop/s and memory bytes/s.
PEAKS = {"H200": (989e12, 4.8e12), "H100": (989e12, 3.35e12), "A100": (312e12, 2.04e12)}
# Kinds of kernels (on a CPU: operators), by a part of their names.
KINDS = {
    "attention": r"flex_attention|scaled_dot_product",
    "products": r"nvjet|gemm|gemv|cutlass|splitK|mm\b",
    "optimizer and clipping": r"multi_tensor|_fused_adamw|_foreach",
}
SEED = 0


def peaks(device: str) -> tuple[float, float]:
    """Returns the peaks: flop/s in bf16 and bytes/s of memory."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        for word, known in PEAKS.items():
            if word in name:
                return known
    side = 8192 if device == "cuda" else 512
    square = torch.randn(side, side, dtype=torch.bfloat16, device=device)
    source, target = torch.empty(2, side**2 * 4, device=device)
    steps = {"product": lambda: square @ square, "copy": lambda: target.copy_(source)}
    product, copy = (min(speed.seconds) for speed in timing.compare(steps, rounds=5))
    return 2 * side**3 / product, 2 * source.nbytes / copy


def free_memory() -> None:
    """Frees the last network, and compiled code that would be generalized to other sizes."""
    memory.build.cache_clear()
    torch._dynamo.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def prior(settings: DictConfig, model: str, device: str, *overrides: str) -> Transformer:
    """Returns a model of `conf/model` over the paper's stream."""
    torch.manual_seed(SEED)
    network = memory.build(model, device, *overrides, *(DRY_PRIOR if settings.dry else []))
    return network.to(device)  # its tables are built on the CPU


def random_text(network: Any, captions: int, device: str) -> Tensor:
    """Returns random text tokens of captions."""
    shape = (captions, network.stream.text_length)
    return torch.randint(network.stream.text_vocab, shape, device=device)


def training_step(
    settings: DictConfig, module: StageModule, batch: dict[str, Any], clip: float
) -> Callable[[], None]:
    """Returns an update of a stage in bf16: loss, backward, gradient clipping, optimizer."""
    module.log_dict = module.log = lambda *_, **__: None  # no trainer to log to
    network = module.network.train()
    if settings.compile:
        network.compile()
    optimizer = module.configure_optimizers()["optimizer"]
    device = next(network.parameters()).device.type

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, cache_enabled=False):  # as Lightning does
            loss = module.training_step(batch, 0)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), clip)
        optimizer.step()

    return step


def prior_step(
    settings: DictConfig, network: Transformer, batch_size: int, device: str
) -> Callable[[], None]:
    """An update on random tokens; the recipe is the paper's: AdamW, and nothing is hidden."""
    stream = network.stream
    text = random_text(network, batch_size, device)
    image = torch.randint(stream.image_vocab, (batch_size, stream.grid, stream.grid), device=device)
    batch = {"text": text, "image_tokens": image}
    return training_step(settings, PriorModule(network, Constant(1e-4)), batch, clip=4.0)


def flops(network: Transformer) -> float:
    """Returns the FLOPs of a training step per image, without recomputation."""
    stream, dim = network.stream, network.image_head.in_features
    blocks = memory.count(network.blocks) * stream.length
    heads = memory.count(network.text_head) * stream.text_length
    heads += memory.count(network.image_head) * stream.image_length
    patterns = [block.attention.pattern for block in network.blocks]
    pairs = sum(int(dense_mask(pattern, stream).sum()) for pattern in patterns)
    return 6.0 * (blocks + heads) + 12.0 * dim * pairs


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Any) -> Tensor:
    """Computes dense causal attention, as in a prior without sparse layers."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def seconds_of(settings: DictConfig, step: Callable[[], Any]) -> float:
    """Returns the median seconds of a step."""
    (speed,) = timing.compare({"step": step}, settings.rounds, settings.warmup)
    return sorted(speed.seconds)[len(speed.seconds) // 2]


def cost_of(settings: DictConfig, step: Callable[[], Any], device: str) -> dict[str, float]:
    """Returns the seconds of a step and, on a GPU, its peak memory."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    cost = {"seconds": seconds_of(settings, step)}
    if device == "cuda":
        cost["GiB"] = torch.cuda.max_memory_allocated() / memory.GIB
    return cost


def measure_attention(settings: DictConfig, device: str) -> dict[str, Any]:
    """Training tokens/s with the paper's patterns (FlexAttention) and with dense attention."""
    model, batch_size = settings.attention.model, settings.attention.batch_size
    results = {}
    for name, replaced in (("the paper's patterns", attention.attend), ("dense", dense)):
        with mock.patch.object(attention, "attend", replaced):
            network = prior(settings, model, device)
            step = prior_step(settings, network, batch_size, device)
            seconds = seconds_of(settings, step)
        results[f"{name}, tokens/s"] = batch_size * network.stream.length / seconds
        del network, step
        free_memory()
    rates = list(results.values())
    return {**results, "speed ratio to dense": rates[0] / rates[1]}


def measure_utilization(settings: DictConfig, device: str) -> dict[str, Any]:
    """Training tokens/s, share of the peak flop/s, and memory."""
    peak, _ = peaks(device)
    results = {}
    for model in settings.utilization.models:
        network = prior(settings, model, device, "model.network.checkpointing=false")
        batch_size = settings.utilization.batch_size
        step = prior_step(settings, network, batch_size, device)
        cost = cost_of(settings, step, device)
        results |= {f"{model}, {name}": value for name, value in cost.items()}
        rate = batch_size / cost["seconds"]
        results[f"{model}, tokens/s"] = rate * network.stream.length
        results[f"{model}, share of peak"] = rate * flops(network) / peak
        del network, step
        free_memory()
    return results


def measure_kernels(settings: DictConfig, device: str) -> dict[str, Any]:
    """Shares of the kernel time of an update, by kind of kernel."""
    network = prior(settings, settings.kernels.model, device, "model.network.checkpointing=false")
    step = prior_step(settings, network, settings.kernels.batch_size, device)
    for _ in range(2):  # warm-up, compiles
        step()
    with torch.profiler.profile() as profiler:
        step()
    on_gpu = device == "cuda"
    seconds: Counter[str] = Counter()
    for event in profiler.key_averages():
        on_cpu = event.device_type == torch.autograd.DeviceType.CPU
        if "#" in event.key or (on_gpu and on_cpu):  # a group of kernels, or a launch
            continue
        kinds = [kind for kind, names in KINDS.items() if re.search(names, event.key)]
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        seconds[kinds[0] if kinds else "other"] += own
    return {kind: time / seconds.total() for kind, time in seconds.most_common()}


def measure_checkpointing(settings: DictConfig, device: str) -> dict[str, Any]:
    """Peak memory and time of a training step, with and without activation checkpointing."""
    model, batch_size = settings.checkpointing.model, settings.checkpointing.batch_size
    results = {}
    for enabled in (False, True):
        override = f"model.network.checkpointing={str(enabled).lower()}"
        network = prior(settings, model, device, override)
        step = prior_step(settings, network, batch_size, device)
        cost = cost_of(settings, step, device)
        label = "checkpointing" if enabled else "no checkpointing"
        results |= {f"{label}, {name}": value for name, value in cost.items()}
        del network, step
        free_memory()
    return results


def bytes_read(network: Any) -> float:
    """Returns the average bytes that one step reads for one image: weights, keys and values."""
    weights = [*network.blocks.parameters(), *network.blocks.buffers()]
    weights += [*network.image_head.parameters(), *network.image_head.buffers()]
    stream, dim = network.stream, network.image_embedding.weight.shape[1]
    light = network.blocks[0].attention.qkv.weight.dtype == torch.bfloat16
    keys = 0.0
    for block in network.blocks:
        read = cache_slots(block.attention.pattern, stream).reads_per_token
        keys += stream.first_image_position + sum(read) / len(read)
    return sum(weight.nbytes for weight in weights) + keys * 2 * dim * (2 if light else 4)


def measure_decoding(settings: DictConfig, device: str) -> dict[str, Any]:
    """Sampling tokens/s of one image, and share of the peak bandwidth."""
    _, peak = peaks(device)
    network = prior(settings, settings.decoding.model, device, *settings.decoding.overrides).eval()
    text = random_text(network, 1, device)
    results = {}
    for weights in settings.decoding.weights:
        light = with_low_precision_weights(network, weights)
        for compiled in (False, True) if settings.compile else (False,):
            draw = partial(sample, light, text, sampling=Sampling(compile=compiled))
            rate = network.stream.image_length / seconds_of(settings, draw)
            name = f"{weights}{', compiled' if compiled else ''}"
            results[f"{name}, tokens/s"] = rate
            results[f"{name}, share of peak bandwidth"] = rate * bytes_read(light) / peak
    return results


def measure_candidates(settings: DictConfig, device: str) -> dict[str, Any]:
    """Images/s for many candidates of one caption."""
    network = prior(settings, settings.candidates.model, device).eval()
    light = with_low_precision_weights(network, settings.candidates.weights)
    text = random_text(network, 1, device)
    sampling = Sampling(compile=settings.compile)
    results = {}
    for number in settings.candidates.numbers:
        draw = partial(sample, light, text, number, sampling=sampling)
        results[f"{number} candidates, images/s"] = number / seconds_of(settings, draw)
    return results


def measure_dvae(settings: DictConfig, device: str) -> dict[str, Any]:
    """Images/s of a dVAE: training in bf16, encoding and decoding."""
    chosen = settings.dvae
    size = f"data.image_size={chosen.image_size}"
    config = training.configuration(["stage=dvae", f"model={chosen.model}", size])
    torch.manual_seed(SEED)
    network = instantiate(config.model.network).to(device)
    images = torch.rand(chosen.batch_size, 3, chosen.image_size, chosen.image_size, device=device)
    module = instantiate(config.model, network=network)
    train = training_step(settings, module, {"image": images, "caption": [""]}, clip=1.0)
    seconds = {"training": seconds_of(settings, train)}
    network.eval()
    with torch.inference_mode():
        tokens = network.encode(images)
        seconds["encoding"] = seconds_of(settings, lambda: network.encode(images))
        seconds["decoding"] = seconds_of(settings, lambda: network.decode(tokens))
    return {f"{name}, images/s": chosen.batch_size / s for name, s in seconds.items()}


PARTS: dict[str, Callable[[DictConfig, str], dict[str, Any]]] = {
    "attention": measure_attention,
    "utilization": measure_utilization,
    "kernels": measure_kernels,
    "checkpointing": measure_checkpointing,
    "decoding": measure_decoding,
    "candidates": measure_candidates,
    "dvae": measure_dvae,
}


def main() -> None:
    settings = command_line.parse(DEFAULTS, __doc__)
    device = timing.prepare(None, SEED)
    if settings.dry:
        settings = OmegaConf.merge(settings, DRY)
    elif device != "cuda":
        raise SystemExit(
            "error: this machine has no GPU: dry=true tests the script in tiny sizes on a CPU"
        )
    results: dict[str, dict[str, Any]] = {}
    for name in settings.parts:
        try:
            results[name] = PARTS[name](settings, device)
        except torch.OutOfMemoryError as error:
            results[name] = {"failed": str(error).splitlines()[0]}
        free_memory()
        rows = [
            [key, value if isinstance(value, str) else f"{value:.4g}"]
            for key, value in results[name].items()
        ]
        timing.print_table(f"{name}: {PARTS[name].__doc__}", ["metric", "value"], rows)
        timing.write(settings.out, results=results, settings=OmegaConf.to_container(settings))


if __name__ == "__main__":
    main()
