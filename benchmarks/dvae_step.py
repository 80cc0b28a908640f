"""Speed of one dVAE training step, against the modules that the paper's authors released.

A step is forward, the negative evidence lower bound, backward and AdamW on random images. All
implementations have the same weights and the same loss. The released modules run unchanged: on a
CPU in fp32 and contiguous.

    python benchmarks/dvae_step.py [num_tokens=8192] [compile=false] [any setting=value]
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import peers
import settings as command_line
import timing
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from tilewright.dvae import DiscreteVAE
from tilewright.dvae.losses import LogitLaplace, categorical_kl
from tilewright.dvae.module import DiscreteVAEModule
from tilewright.training.schedules import Constant

DEFAULTS = {
    "image_size": 64,
    "grid": 8,
    "num_tokens": 8192,
    "n_hid": 64,  # the paper: 256
    "batch_size": 16,
    "rounds": 20,
    "warmup": 3,
    "threads": None,  # null: torch's default
    "compile": True,  # compiling takes a minute
    "out": "logs/benchmarks/dvae_step.json",
}
TEMPERATURE, BETA, LEARNING_RATE, WEIGHT_DECAY = 1.0, 6.6, 1e-4, 1e-4
SEED = 0


@dataclass
class Training:
    """An implementation that is ready to train on one batch of images."""

    loss: Callable[[Tensor], Tensor]
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    images: Tensor
    bf16: bool = False

    def backward(self) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.loss(self.images)
        loss.backward()
        return loss.detach()

    def step(self) -> None:
        self.backward()
        self.optimizer.step()


def released(
    dall_e: ModuleType, settings: DictConfig, weights: list[Tensor], images: Tensor
) -> Training:
    """Returns the released modules with the paper's loss."""
    sizes = {"n_hid": settings.n_hid, "vocab_size": settings.num_tokens}
    encoder = dall_e.Encoder(**sizes)
    decoder = dall_e.Decoder(**sizes, output_channels=3)
    networks = nn.ModuleList([encoder, decoder]).to(images.device).requires_grad_(True)
    fill(networks, weights)
    share = settings.grid**2 / images[0].numel()

    def loss(images: Tensor) -> Tensor:
        logits = encoder(dall_e.map_pixels(images))
        codes = F.gumbel_softmax(logits, tau=TEMPERATURE, dim=1)
        reconstruction = LogitLaplace().nll(images, decoder(codes)).mean()
        return reconstruction + BETA * share * categorical_kl(logits).mean()

    parameters = list(networks.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    return Training(loss, parameters, optimizer, images)


def ours(
    settings: DictConfig,
    weights: list[Tensor],
    images: Tensor,
    layout: torch.memory_format = torch.channels_last,
    bf16: bool = False,
    compiled: bool = False,
) -> Training:
    """Returns this project's training step, as its LightningModule defines it."""
    network = make_network(settings).to(images.device)
    fill(network, weights)
    network.to(memory_format=layout)
    module = DiscreteVAEModule(
        network, Constant(TEMPERATURE), Constant(BETA), Constant(LEARNING_RATE), WEIGHT_DECAY
    )
    module.log = module.log_dict = lambda *_, **__: None  # no trainer to log to

    def loss(images: Tensor) -> Tensor:
        return module.training_step({"image": images}, 0)

    if compiled:
        torch._inductor.config.fallback_random = True  # the same noise as in eager mode
        loss = torch.compile(loss)
    optimizers: Any = module.configure_optimizers()
    return Training(
        loss=loss,
        parameters=list(network.parameters()),
        optimizer=optimizers["optimizer"],
        images=images.to(memory_format=layout),
        bf16=bf16,
    )


def make_network(settings: DictConfig) -> DiscreteVAE:
    """Returns the paper's architecture in the size of the settings."""
    sizes = ("image_size", "grid", "num_tokens", "n_hid")
    return DiscreteVAE(**{name: settings[name] for name in sizes}, likelihood=LogitLaplace())


@torch.no_grad()
def fill(network: nn.Module, weights: list[Tensor]) -> None:
    """Copies weights into a network; all implementations have the same order of parameters."""
    for parameter, value in zip(network.parameters(), weights, strict=True):
        parameter.copy_(value)


def variants(compiled: bool) -> Iterator[tuple[str, Callable[..., Training]]]:
    """Yields the implementations by name, the baseline first."""
    dall_e = peers.load("dall_e")
    if dall_e is not None:
        yield "released modules", partial(released, dall_e)
    yield "ours, fp32, contiguous", partial(ours, layout=torch.contiguous_format)
    yield "ours, fp32, channels_last", ours
    yield "ours, bf16, channels_last", partial(ours, bf16=True)
    if compiled:
        yield "ours, bf16, channels_last, compiled", partial(ours, bf16=True, compiled=True)


def disagreement(training: Training, reference: Training) -> dict[str, float]:
    """Returns relative differences of loss and gradient, for the same weights and noise.

    The difference of gradients is the norm of the difference over the norm: for all parameters
    together, and for the parameter with the largest one.
    """
    torch.manual_seed(SEED)
    expected = reference.backward()
    torch.manual_seed(SEED)
    loss = training.backward()
    pairs = zip(training.parameters, reference.parameters, strict=True)
    norms = torch.tensor([[(a.grad - b.grad).norm(), b.grad.norm()] for a, b in pairs])
    differences, sizes = norms.T
    return {
        "loss": float((loss - expected).abs() / expected.abs()),
        "gradient": float(differences.norm() / sizes.norm()),
        "worst parameter": float((differences / sizes).max()),
    }


def main() -> None:
    settings = command_line.parse(DEFAULTS, __doc__)
    device = timing.prepare(settings.threads, SEED)
    weights = [p.detach().to(device) for p in make_network(settings).parameters()]
    images = torch.rand(settings.batch_size, 3, settings.image_size, settings.image_size)
    images = images.to(device)
    trainings = {name: make(settings, weights, images) for name, make in variants(settings.compile)}

    reference = trainings["ours, fp32, contiguous"]
    agreement = {  # the released modules use other noise; tests/parity compares them
        name: disagreement(training, reference)
        for name, training in trainings.items()
        if name.startswith("ours") and training is not reference
    }
    rows = [[name, *(f"{v:.1e}" for v in values.values())] for name, values in agreement.items()]
    timing.print_table(
        "Relative difference from ours in fp32, contiguous",
        ["step", "loss", "gradient", "worst parameter"],
        rows,
    )
    steps = {name: training.step for name, training in trainings.items()}
    speeds = timing.compare(steps, settings.rounds, settings.warmup)
    timing.print_speeds("A dVAE training step", speeds)
    timing.write(
        settings.out,
        speeds=speeds,
        differences=agreement,
        settings=OmegaConf.to_container(settings),
    )


if __name__ == "__main__":
    main()
