"""Draws image tokens for captions, one position at a time, each computed once."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tilewright.prior.compiled_step import CompiledSteps, compiled
from tilewright.prior.kv_cache import LayerCache
from tilewright.prior.low_precision import WEIGHTS, Weights, lightened
from tilewright.prior.transformer import Transformer


@dataclass(frozen=True)
class Sampling:
    """How image tokens are drawn.

    Args:
        temperature: divides the logits (the paper draws at 1); 0 takes the likeliest token.
        top_k: only the k likeliest tokens, or None for all.
        top_p: only the likeliest tokens that together hold this probability, or None for all.
        guidance: how far to move from the logits of an empty caption to those of the caption and
            beyond; 1 is no guidance. Needs a prior trained with caption dropout.
        weights: number format of the network's linear layers while it draws: float32, or the
            lighter bfloat16 or int8 (`lightened`), which draw nearly the same pictures faster.
        compile: compile one step for all positions, which takes up to a minute for each number of
            pictures at once, and replay it as a graph on CUDA. Rounding may differ.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance: float = 1.0
    weights: Weights = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 or more, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be 1 or more, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}, got {self.weights}")


def candidate_noise(captions: range, candidates: range, length: int, seed: int) -> Tensor:
    """Uniform numbers [C * n, length], one generator for each picture.

    Candidate i of caption number c is the same picture however many others are drawn with it.
    """
    rows = []
    for caption in captions:
        for candidate in candidates:
            mixed = (seed * 1_000_003 + caption) * 1_000_003 + candidate
            generator = torch.Generator().manual_seed(mixed % 2**63)
            rows.append(torch.rand(length, generator=generator))
    return torch.stack(rows)


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Tokens [B] from logits [B, K] by inverting the distribution at `uniform` [B] in [0, 1)."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = (logits / sampling.temperature).softmax(dim=-1)
    if sampling.top_k is None and sampling.top_p is None:  # then their order does not matter
        cumulative = probabilities.cumsum(dim=-1)
        total = cumulative[:, -1:]
        token = torch.searchsorted(cumulative, uniform[:, None] * total, right=True)
        last = (cumulative < total).sum(dim=-1, keepdim=True)  # rounding may carry it past
        return token.minimum(last).squeeze(1)
    probabilities, tokens = probabilities.sort(descending=True)
    if sampling.top_k is not None:
        probabilities = probabilities[:, : sampling.top_k]
    cumulative = probabilities.cumsum(dim=-1)
    kept = torch.ones_like(cumulative, dtype=torch.bool)
    if sampling.top_p is not None:
        # A token is kept while those before it hold less than top_p: the likeliest always is.
        kept = cumulative - probabilities < sampling.top_p
        cumulative = (probabilities * kept).cumsum(dim=-1)
    target = uniform[:, None] * cumulative[:, -1:]
    rank = torch.searchsorted(cumulative, target, right=True)
    last = kept.sum(dim=-1, keepdim=True) - 1  # rounding may carry the target past it
    return tokens.gather(1, rank.minimum(last)).squeeze(1)


def advance(
    network: Transformer,
    caches: list[LayerCache],
    uniform: Tensor,
    sampling: Sampling,
    tokens: Tensor,
    number: int | Tensor,
) -> Tensor:
    """Reads image token `number` [B] and draws the next [B], by the numbers `uniform` [B, N]."""
    both = torch.cat([tokens, tokens]) if sampling.guidance != 1 else tokens
    logits = network.step(both, number, caches)
    if isinstance(number, int):
        return choose(logits, uniform[:, number + 1], sampling)
    return choose(logits, uniform.index_select(1, number + 1).squeeze(1), sampling)


def choose(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Tokens [B] from logits [B, K], or with guidance from logits [2 B, K], empty captions last."""
    if sampling.guidance != 1:
        conditional, empty = logits.chunk(2)
        logits = empty + sampling.guidance * (conditional - empty)
    return draw(logits, uniform, sampling)


def sample(network: Transformer, text: Tensor, candidates: int = 1, **how: Any) -> Tensor:
    """Image tokens [C, n, h, w] for captions [C, T]; the arguments are those of `sample_rows`."""
    for tokens in sample_rows(network, text, candidates, **how):  # noqa: B007  (the last one)
        pass
    return tokens


@torch.inference_mode()
def sample_rows(
    network: Transformer,
    text: Tensor,
    candidates: int = 1,
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
    first: int = 0,
    first_candidate: int = 0,
    first_rows: Tensor | None = None,
) -> Iterator[Tensor]:
    """Image tokens for captions, as they are drawn.

    Args:
        text: text tokens [C, T], negative past their end.
        candidates: n, pictures for each caption.
        first: number of the first caption, where these are a part of a longer list: the pictures
            depend on the seed, the caption's number and the candidate's.
        first_candidate: number of the first candidate, likewise.
        first_rows: image tokens [C, R, w] that every picture of the caption begins with.

    Yields:
        After each row, those of all rows so far: [C, n, 1, w] to [C, n, h, w].

    Raises:
        ValueError: first_rows do not fit the captions or the grid.
    """
    sampling = sampling or Sampling()
    stream, captions = network.stream, len(text)
    numbers = range(first, first + captions), range(first_candidate, first_candidate + candidates)
    uniform = candidate_noise(*numbers, stream.image_length, seed).to(text.device)
    given = torch.empty(captions, 0, dtype=torch.long, device=text.device)
    if first_rows is not None:
        rows, side = first_rows.shape[1:]
        if len(first_rows) != captions or rows > stream.grid or side != stream.grid:
            raise ValueError(
                f"first_rows must be [{captions}, up to {stream.grid}, {stream.grid}], "
                f"got {list(first_rows.shape)}"
            )
        given = first_rows.flatten(1).to(text.device)
    given = given.repeat_interleave(candidates, dim=0)

    network = lightened(network, sampling.weights)
    if sampling.guidance != 1:  # the same pictures once more, under empty captions
        text = torch.cat([text, stream.empty_captions(captions, text.device)])
    step: Callable[..., Tensor]
    if sampling.compile:
        device, read = text.device.type, type(network).prefill
        prefill, function = compiled(read, device), compiled(advance, device)
        logits, caches = prefill(network, text, candidates)
        step = CompiledSteps(
            partial(function, network, caches, uniform, sampling), uniform[:, 0].long()
        )
    else:
        logits, caches = network.prefill(text, candidates)
        step = partial(advance, network, caches, uniform, sampling)
    drawn: list[Tensor] = []
    for number in range(stream.image_length):
        if number == 0:
            tokens = choose(logits, uniform[:, 0], sampling)
        else:
            tokens = step(drawn[-1], number - 1)
        drawn.append(given[:, number] if number < given.shape[1] else tokens)
        if len(drawn) % stream.grid == 0:
            yield torch.stack(drawn, dim=1).view(captions, candidates, -1, stream.grid)
