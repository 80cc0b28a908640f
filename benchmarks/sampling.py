"""Speed of sampling image tokens, without the dVAE, against other samplers of equal shape.

Every implementation samples one image per caption in fp32 with random weights; ours also with
lighter weights and compiled, if asked. DALLE-pytorch 1.6.6 is measured unchanged, where
`use_cache=True` has no effect without guidance, and with its cache repaired. The matrix products of
our sampler alone are timed in the same rounds: no sampler with these shapes can be faster.

    python benchmarks/sampling.py [batches=[1,16,64]] [weights=[bfloat16,int8]] [compile=true]
        [any setting=value]
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import peers
import priors
import settings as command_line
import timing
import torch
from omegaconf import DictConfig, OmegaConf

from tilewright.prior import Sampling, Transformer, sample, with_low_precision_weights
from tilewright.prior.patterns import cache_slots

DEFAULTS = {
    **priors.SHAPE,
    "batches": [1, 16, 64],
    "weights": [],  # other dtypes of ours: bfloat16, int8 (CPU)
    "compile": False,  # also ours with a compiled step; compiling takes a minute for each
    "uncached_up_to": 16,  # largest batch for samplers without a working cache
    "rounds": 5,
    "warmup": 1,
    "threads": None,  # null: torch's default
    "out": "logs/benchmarks/sampling.json",
}
OURS = "ours, paper's patterns"
PRODUCTS = "its matrix products alone"
SEED = 0


def peer_samplers(shape: DictConfig, device: str, batch: int) -> Iterator[tuple[str, Callable]]:
    """Yields the installed peers by name: functions of text tokens to image tokens."""
    dalle = peers.load("dalle_pytorch")
    if dalle is not None:
        make = partial(priors.dalle_pytorch, dalle, shape, device)
        if batch <= shape.uncached_up_to:
            yield "DALLE-pytorch, full", make().draw
            yield "DALLE-pytorch, sparse", make(priors.DALLE_SPARSE).draw
        yield "DALLE-pytorch, full, cache repaired", make(cached=True).draw
        axial = make(("axial_row", "axial_col"), cached=True, optimize_for_inference=True)
        yield "DALLE-pytorch, axial for inference, cache repaired", axial.draw
    transformers = peers.load("transformers")
    if transformers is not None:
        yield "transformers, GPT-2", priors.gpt2(transformers, shape, device).draw
    x_transformers = peers.load("x_transformers")
    if x_transformers is not None:
        yield "x-transformers", priors.x_transformers(x_transformers, shape, device).draw


class Products:
    """The matrix products of sampling with the paper's patterns, without everything else.

    There are no norms, softmax, copies and sampled tokens, and no attention in the prompt.
    """

    def __init__(self, network: Transformer, captions: int):
        stream, image_head = network.stream, network.image_head
        weight: Any = image_head.weight
        self.network, self.captions, self.prompt = network, captions, stream.first_image_position
        patterns = [block.attention.pattern for block in network.blocks]
        reads = zip(
            *(cache_slots(pattern, stream).reads_per_token for pattern in patterns), strict=True
        )
        # Number of keys that each token sees in each layer, text included.
        self.keys = [[self.prompt + keys for keys in token] for token in reads]
        attention: Any = network.blocks[0].attention
        self.dim, heads = weight.shape[1], attention.heads
        rows = captions * self.prompt
        self.states = weight.new_zeros(rows, self.dim)
        self.hidden = weight.new_zeros(rows, 4 * self.dim)
        max_keys = max(map(max, self.keys))
        self.query = weight.new_zeros(captions * heads, 1, self.dim // heads)
        self.cache = weight.new_zeros(captions * heads, max_keys, self.dim // heads)
        self.weights = weight.new_zeros(captions * heads, 1, max_keys)

    @property
    def multiply_adds(self) -> int:
        """Number of multiply-adds of one call."""
        inputs, layers = len(self.keys), len(self.network.blocks)
        of_states = (self.prompt + inputs) * layers * 12 * self.dim**2
        of_keys = 2 * sum(map(sum, self.keys)) * self.dim
        of_head = (1 + inputs) * self.network.image_head.weight.numel()
        return self.captions * (of_states + of_keys + of_head)

    @torch.inference_mode()
    def __call__(self) -> None:
        head = self.network.image_head.weight.T
        self._layers(len(self.states), [])
        self.states[: self.captions] @ head
        for keys in self.keys:
            self._layers(self.captions, keys)
            self.states[: self.captions] @ head

    def _layers(self, rows: int, keys: list[int]) -> None:
        states, hidden = self.states[:rows], self.hidden[:rows]
        for index, block in enumerate(self.network.blocks):
            states @ block.attention.qkv.weight.T
            if keys:
                cache = self.cache[:, : keys[index]]
                self.query @ cache.mT
                self.weights[..., : keys[index]] @ cache
            states @ block.attention.out.weight.T
            states @ block.mlp.up.weight.T
            hidden @ block.mlp.down.weight.T


def measure(settings: DictConfig, batch: int, device: str) -> dict[str, Any]:
    """Prints and returns the results for one batch size."""
    text, _ = priors.random_pairs(settings, batch, device)
    ours = {
        name: priors.ours(settings, device, pattern).network.eval()
        for name, pattern in ((OURS, "paper"), ("ours, full attention", "full"))
    }
    steps = {name: partial(sample, network, text) for name, network in ours.items()}
    network = ours[OURS]
    lights = {weights: with_low_precision_weights(network, weights) for weights in settings.weights}
    for weights, light in lights.items():
        steps[f"{OURS}, {weights}"] = partial(sample, light, text)
    if settings.compile:
        for weights, light in {"float32": network, **lights}.items():
            compiled = partial(sample, light, text, sampling=Sampling(compile=True))
            steps[f"{OURS}, {weights}, compiled"] = compiled
    if batch > 1:
        steps[f"{OURS}, candidates of one caption"] = partial(sample, network, text[:1], batch)
    products = Products(network, batch)
    steps[PRODUCTS] = products
    peer_steps = {
        name: partial(draw, text) for name, draw in peer_samplers(settings, device, batch)
    }
    speeds = timing.compare(steps | peer_steps, settings.rounds, settings.warmup)
    title = f"One image for each of {batch} captions" if batch > 1 else "One image"
    timing.print_against_peers(title, speeds, peer_steps)
    of_products = {speed.name: speed for speed in timing.against(speeds, PRODUCTS)}
    rate = products.multiply_adds / np.median(of_products[PRODUCTS].seconds) / 1e9
    share = of_products[OURS]
    print(
        f"Arithmetic limit: {products.multiply_adds / 1e9:.2f} G multiply-adds, which alone run "
        f"at {rate:.1f} G/s; ours reaches {share.ratio:.0%} ({share.low:.0%} to "
        f"{share.high:.0%}) of that\n"
    )
    return {
        "speeds": speeds,
        "multiply_adds": products.multiply_adds,
        "multiply_adds_a_second": rate * 1e9,
        "share_of_limit": share,
    }


def main() -> None:
    settings = command_line.parse(DEFAULTS, __doc__)
    device = timing.prepare(settings.threads, SEED)
    batches = {str(batch): measure(settings, batch, device) for batch in settings.batches}
    timing.write(settings.out, batches=batches, settings=OmegaConf.to_container(settings))


if __name__ == "__main__":
    main()
