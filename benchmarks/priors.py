"""Priors of equal shape, ours and the peers', with random weights.

All read the same stream: start token, text tokens with one padding token per position, image
tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from tilewright.prior import Stream, Transformer, sample
from tilewright.prior.module import PriorModule
from tilewright.training.schedules import Constant

SHAPE = {
    "dim": 256,
    "depth": 4,
    "heads": 8,
    "text_length": 32,
    "grid": 8,
    "text_vocab": 512,
    "image_vocab": 512,
}
DALLE_SPARSE = ("axial_row", "axial_col", "conv_like")


@dataclass
class Prior:
    """A prior of one project.

    Args:
        network: the network to train.
        draw: samples image tokens for text tokens [B, T], one image per caption.
        loss: returns the loss of text tokens [B, T] and image tokens [B, h, w].
        optimizer: makes the project's own optimizer; None is torch's AdamW.
    """

    network: nn.Module
    draw: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: Callable[[], Optimizer] | None = None


def stream_of(shape: DictConfig) -> Stream:
    """Returns the stream of a shape."""
    return Stream(shape.text_length, shape.text_vocab, shape.grid, shape.image_vocab)


def random_pairs(shape: DictConfig, count: int, device: str) -> tuple[Tensor, Tensor]:
    """Returns random text tokens [B, T] of random lengths, and image tokens [B, h, w]."""
    text = torch.randint(shape.text_vocab, (count, shape.text_length))
    lengths = torch.randint(1, shape.text_length + 1, (count, 1))
    text = text.where(torch.arange(shape.text_length) < lengths, -1)
    image = torch.randint(shape.image_vocab, (count, shape.grid, shape.grid))
    return text.to(device), image.to(device)


def ours(
    shape: DictConfig, device: str, pattern: str, compiled: bool = False, **parts: Any
) -> Prior:
    """Returns this project's prior, trained without caption dropout."""
    sizes = {name: shape[name] for name in ("dim", "depth", "heads")}
    network = Transformer(stream_of(shape), **sizes, pattern=pattern, **parts).to(device)
    if compiled:
        network.compile()
    return of_network(network)


def of_network(network: Transformer) -> Prior:
    """Returns a network with the loss and the optimizer of this project's LightningModule."""
    module = PriorModule(network, Constant(3e-4), caption_dropout=0.0)
    module.log_dict = lambda *_, **__: None  # no trainer to log to

    def loss(text: Tensor, image: Tensor) -> Tensor:
        return module.training_step({"text": text, "image_tokens": image}, 0)

    def optimizer() -> Optimizer:
        return module.configure_optimizers()["optimizer"]

    return Prior(network, lambda text: sample(network, text), loss, optimizer)


def dalle_pytorch(
    package: ModuleType,
    shape: DictConfig,
    device: str,
    attn_types: tuple[str, ...] = ("full",),
    cached: bool = False,
    filter_thres: float = 0.5,
    **options: Any,
) -> Prior:
    """Returns DALLE-pytorch's prior, which reads and returns image tokens here.

    Args:
        cached: keeps the cache that its `use_cache` drops without guidance. Not for its sparse
            layers, which would all write to the same entry of the cache.
        filter_thres: share of the logits, text included, that is cut off before sampling.
        options: more arguments of its DALLE.
    """

    class NoVAE(package.DiscreteVAE):  # its DALLE accepts only its own classes
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.image_size, self.num_layers, self.num_tokens = shape.grid, 0, shape.image_vocab

        def get_codebook_indices(self, tokens: Tensor) -> Tensor:
            return tokens

        def decode(self, tokens: Tensor) -> Tensor:
            return tokens

    class CachingDALLE(package.DALLE):
        def forward_with_cond_scale(self, *args: Any, cond_scale: float, **rest: Any) -> Tensor:
            return self(*args, **rest)

    sizes = {name: shape[name] for name in ("dim", "depth", "heads")}
    network = (CachingDALLE if cached else package.DALLE)(
        **sizes,
        dim_head=shape.dim // shape.heads,
        num_text_tokens=shape.text_vocab + 1,  # 0 is its padding
        text_seq_len=shape.text_length,
        vae=NoVAE(),
        attn_types=attn_types,
        **options,
    ).to(device)

    def draw(text: Tensor) -> Tensor:
        text = text.clamp(min=-1) + 1
        return network.generate_images(text, use_cache=True, filter_thres=filter_thres)

    def loss(text: Tensor, image: Tensor) -> Tensor:
        return network(text.clamp(min=-1) + 1, image.flatten(1), return_loss=True)

    return Prior(network, draw, loss)


def joined(stream: Stream, text: Tensor, image: Tensor | None = None) -> Tensor:
    """Returns the stream [B, n] in one vocabulary, text tokens first."""
    start = text.new_full((len(text), 1), stream.start_token)
    parts = [start, stream.pad(text)]
    if image is not None:
        parts.append(image.flatten(1) + stream.text_embeddings)
    return torch.cat(parts, dim=1)


def gpt2(package: ModuleType, shape: DictConfig, device: str) -> Prior:
    """Returns GPT-2 of transformers, without dropout, over one vocabulary."""
    stream = stream_of(shape)
    config = package.GPT2Config(
        vocab_size=stream.text_embeddings + shape.image_vocab,
        n_positions=stream.length + 1,
        n_embd=shape.dim,
        n_layer=shape.depth,
        n_head=shape.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,  # no token ends an image early
        pad_token_id=None,
    )
    network = package.GPT2LMHeadModel(config).to(device)
    network.loss_type = "ForCausalLM"  # avoids a warning

    def draw(text: Tensor) -> Tensor:
        prompt = joined(stream, text)
        drawn = network.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=stream.image_length,
            do_sample=True,
            top_k=0,
            use_cache=True,
        )
        return drawn[:, prompt.shape[1] :]

    def loss(text: Tensor, image: Tensor) -> Tensor:
        tokens = joined(stream, text, image)
        return network(tokens, labels=tokens).loss

    return Prior(network, draw, loss)


def x_transformers(package: ModuleType, shape: DictConfig, device: str) -> Prior:
    """Returns the decoder of x-transformers with its fast attention, over one vocabulary."""
    stream = stream_of(shape)
    layers = package.Decoder(
        dim=shape.dim,
        depth=shape.depth,
        heads=shape.heads,
        attn_dim_head=shape.dim // shape.heads,
        attn_flash=True,
    )
    network = package.AutoregressiveWrapper(
        package.TransformerWrapper(
            num_tokens=stream.text_embeddings + shape.image_vocab,
            max_seq_len=stream.length + 1,
            attn_layers=layers,
        )
    ).to(device)

    def draw(text: Tensor) -> Tensor:
        return network.generate(
            joined(stream, text),
            stream.image_length,
            cache_kv=True,
            filter_logits_fn=lambda logits: logits,
        )

    def loss(text: Tensor, image: Tensor) -> Tensor:
        return network(joined(stream, text, image))

    return Prior(network, draw, loss)


def training_step(prior: Prior, text: Tensor, image: Tensor, bf16: bool) -> Callable[[], None]:
    """Returns a function that runs forward, loss, backward and an update."""
    if prior.optimizer is None:
        parameters = [p for p in prior.network.parameters() if p.requires_grad]
        optimizer: Optimizer = torch.optim.AdamW(parameters, lr=3e-4)
    else:
        optimizer = prior.optimizer()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(text.device.type, torch.bfloat16, enabled=bf16):
            loss = prior.loss(text, image)
        loss.backward()
        optimizer.step()

    return step
