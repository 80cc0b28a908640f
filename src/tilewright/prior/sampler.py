"""Sampling of image tokens for captions, with each position computed once."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tilewright.checks import MAX_SEED, check_flag, check_number, check_option, check_whole
from tilewright.prior.compiled_step import CompiledSteps, compile_function
from tilewright.prior.low_precision import WEIGHTS, Weights, with_low_precision_weights
from tilewright.prior.protocol import Prior

logger = logging.getLogger(__name__)

MIN_TEMPERATURE = 1e-6  # about the spacing of logits in fp32; far smaller values overflow
MAX_GUIDANCE = 1000  # far above any use, and far below an overflow of the logits


@dataclass(frozen=True)
class Sampling:
    """Settings for sampling image tokens.

    `temperature=0`, `top_k=1` and a tiny `top_p` all take the most likely token.

    Args:
        temperature: divisor of the logits (1 in the paper). 0 takes the most likely token, and so
            does any value below 1e-6.
        top_k: sample from the k most likely tokens. None, or a k of the vocabulary's size or more,
            samples from all.
        top_p: sample from the most likely tokens that together reach this probability, after
            `top_k` is applied. None samples from all.
        guidance: classifier-free guidance scale. 1 is no guidance; larger values follow the caption
            more closely. Needs a prior that was trained with caption dropout.
        weights: dtype of the linear layers' weights. "bfloat16" and "int8" are faster and sample
            nearly the same images as "float32" (`with_low_precision_weights`).
        compile: compile one step for all positions, and replay it as a graph on CUDA. Compilation
            takes a minute or more for each batch size on a CPU. Results may differ by rounding.

    Raises:
        UserError: a setting is not a number or out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance: float = 1.0
    weights: Weights = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0)
        check_number("guidance", self.guidance, 0, MAX_GUIDANCE)
        if self.top_k is not None:
            check_whole("top_k", self.top_k)
        if self.top_p is not None:
            check_number("top_p", self.top_p, 0, 1, exclusive=True)
        check_option("weights", self.weights, WEIGHTS)
        check_flag("compile", self.compile)

    @property
    def is_greedy(self) -> bool:
        """True if the most likely token is always taken."""
        return self.temperature < MIN_TEMPERATURE


def sample(
    network: Prior,
    text: Tensor,
    candidates: int = 1,
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
    caption_offset: int = 0,
    candidate_offset: int = 0,
    image_prompt_tokens: Tensor | None = None,
) -> Tensor:
    """Samples image tokens [C, n, h, w] for C captions.

    The arguments are those of `sample_rows`.
    """
    for tokens in sample_rows(  # noqa: B007  (the loop keeps the last value)
        network,
        text,
        candidates,
        sampling=sampling,
        seed=seed,
        caption_offset=caption_offset,
        candidate_offset=candidate_offset,
        image_prompt_tokens=image_prompt_tokens,
    ):
        pass
    return tokens


@torch.inference_mode()
def sample_rows(
    network: Prior,
    text: Tensor,
    candidates: int = 1,
    *,
    sampling: Sampling | None = None,
    seed: int = 0,
    caption_offset: int = 0,
    candidate_offset: int = 0,
    image_prompt_tokens: Tensor | None = None,
) -> Iterator[Tensor]:
    """Samples image tokens for captions and yields them row by row.

    An image depends on the seed and on the indices of its caption and candidate, not on the batch.

    Args:
        network: trained prior.
        text: text of the stream, such as text tokens [C, T].
        candidates: n, images per caption.
        sampling: sampling settings; None uses the defaults.
        seed: seed of the noise.
        caption_offset: index of the first caption, if these are a part of a longer list.
        candidate_offset: index of the first candidate, if these are a part of all.
        image_prompt_tokens: image tokens [C, R, w] of the first R rows of all images of a caption.

    Yields:
        Image tokens of all rows so far: [C, n, 1, w], then [C, n, 2, w], up to [C, n, h, w].

    Raises:
        UserError: the seed is not possible.
        ValueError: image_prompt_tokens do not fit the captions or the grid.
    """
    sampling = sampling or Sampling()
    stream, captions = network.stream, len(text)
    uniform = candidate_noise(
        range(caption_offset, caption_offset + captions),
        range(candidate_offset, candidate_offset + candidates),
        stream.image_length,
        seed,
    ).to(text.device)
    prompt = torch.empty(captions, 0, dtype=torch.long, device=text.device)
    if image_prompt_tokens is not None:
        rows, side = image_prompt_tokens.shape[1:]
        if len(image_prompt_tokens) != captions or rows > stream.grid or side != stream.grid:
            raise ValueError(
                f"image_prompt_tokens must be [{captions}, up to {stream.grid}, {stream.grid}], "
                f"got {list(image_prompt_tokens.shape)}"
            )
        prompt = image_prompt_tokens.flatten(1).to(text.device)
    prompt = prompt.repeat_interleave(candidates, dim=0)

    network = with_low_precision_weights(network, sampling.weights)
    if sampling.guidance != 1:  # guidance samples the same images with empty captions, too
        text = torch.cat([text, stream.without_caption(text)])
    step: Callable[[Tensor, int], Tensor]
    if sampling.compile:
        prefill = compile_function(type(network).prefill, text.device.type)
        compiled_step = compile_function(decode_step, text.device.type)
        logits, caches = prefill(network, text, candidates, compiled_steps=True)
        step = CompiledSteps(
            partial(compiled_step, network, caches, uniform, sampling), uniform[:, 0].long()
        )
    else:
        logits, caches = network.prefill(text, candidates)
        step = partial(decode_step, network, caches, uniform, sampling)
    if logits.isnan().any():
        logger.warning(
            "The prior's logits are nan, so these images mean nothing: use weights from before its "
            "loss became nan"
        )
    tokens = sample_from_logits(guided(logits, sampling.guidance), uniform[:, 0], sampling)
    image: list[Tensor] = []
    for index in range(stream.image_length):
        if index > 0:
            tokens = step(image[-1], index - 1)
        image.append(prompt[:, index] if index < prompt.shape[1] else tokens)
        if len(image) % stream.grid == 0:
            yield torch.stack(image, dim=1).view(captions, candidates, -1, stream.grid)


def decode_step(
    network: Prior,
    caches: Any,
    uniform: Tensor,
    sampling: Sampling,
    tokens: Tensor,
    index: int | Tensor,
) -> Tensor:
    """Reads one image token and samples the next one.

    Args:
        caches: caches from the network's `prefill`.
        uniform: noise [B, N] in [0, 1).
        tokens: image tokens [B].
        index: index of these tokens in raster order, an int or a tensor [1].

    Returns:
        Image tokens [B] at `index` + 1.
    """
    batch = torch.cat([tokens, tokens]) if sampling.guidance != 1 else tokens
    logits = guided(network.step(batch, index, caches), sampling.guidance)
    if isinstance(index, int):
        return sample_from_logits(logits, uniform[:, index + 1], sampling)
    return sample_from_logits(logits, uniform.index_select(1, index + 1).squeeze(1), sampling)


def guided(logits: Tensor, guidance: float) -> Tensor:
    """Applies classifier-free guidance.

    Args:
        logits: [B, K], or [2 B, K] with those of the empty captions last if guidance is not 1.
        guidance: scale; 1 is no guidance.
    """
    if guidance == 1:
        return logits
    conditional, empty = logits.chunk(2)
    return empty + guidance * (conditional - empty)


def sample_from_logits(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """Samples tokens [B] from logits [B, K] by inverting the cumulative distribution.

    Args:
        uniform: noise [B] in [0, 1).
    """
    if sampling.is_greedy:
        return logits.argmax(dim=-1)
    if sampling.top_k is None and sampling.top_p is None:  # no sorting needed
        cumulative = (logits / sampling.temperature).softmax(dim=-1).cumsum(dim=-1)
        total = cumulative[:, -1:]
        token = torch.searchsorted(cumulative, uniform[:, None] * total, right=True)
        last = (cumulative < total).sum(dim=-1, keepdim=True)  # rounding may exceed it
        return token.minimum(last).squeeze(1)
    # Stable, so that the first of equal logits is the most likely token, as for argmax.
    logits, tokens = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = (logits[:, : sampling.top_k] / sampling.temperature).softmax(dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    kept = torch.ones_like(cumulative, dtype=torch.bool)
    if sampling.top_p is not None:
        # Keeps a token while those before it sum to less than top_p: always the most likely one.
        kept = cumulative - probabilities < sampling.top_p
        cumulative = (probabilities * kept).cumsum(dim=-1)
    target = uniform[:, None] * cumulative[:, -1:]
    rank = torch.searchsorted(cumulative, target, right=True)
    last = (kept.sum(dim=-1, keepdim=True) - 1).clamp(min=0)  # rounding may exceed it; nan keeps 0
    return tokens.gather(1, rank.minimum(last)).squeeze(1)


def candidate_noise(captions: range, candidates: range, length: int, seed: int) -> Tensor:
    """Returns uniform noise [C * n, length] in [0, 1).

    Each row has its own generator, so that a candidate does not depend on the rest of the batch.

    Args:
        captions: indices of the captions.
        candidates: indices of the candidates of each caption.
        length: numbers per candidate.

    Raises:
        UserError: the seed is not a whole number, or out of range.
    """
    check_whole("seed", seed, 0, MAX_SEED)
    rows = []
    for caption in captions:
        for candidate in candidates:
            mixed = (seed * 1_000_003 + caption) * 1_000_003 + candidate
            generator = torch.Generator().manual_seed(mixed % 2**63)
            rows.append(torch.rand(length, generator=generator))
    return torch.stack(rows)
