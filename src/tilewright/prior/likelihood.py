"""Other uses of the joint model: log-likelihood of a pair, and completion of captions."""

import torch
from torch import Tensor

from tilewright.errors import UserError
from tilewright.prior.protocol import Prior
from tilewright.prior.sampler import Sampling, candidate_noise, sample_from_logits
from tilewright.prior.stream import TokenStream


@torch.inference_mode()
def log_likelihood(network: Prior, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Computes ln p(caption) [B] and ln p(image | caption) [B], in nats.

    Their sum is ln p of the pair. The caption's likelihood covers the same text tokens as the
    training loss (`Stream.padding_targets`): by default its BPE tokens and the padding token that
    ends it. It is conditional on the first token for a `PlainStream`, and nan for a
    `CaptionStream`, whose text is not predicted.

    Args:
        text: text of the stream, such as text tokens [B, T].
        image: image tokens [B, h, w].
    """
    text_logits, image_logits = network(text, image)
    stream = network.stream
    text_nats, image_nats = stream.token_nats(text_logits, image_logits, text, image)
    caption = -(text_nats * stream.text_targets(text)).sum(dim=1)
    if stream.predicted_text == 0:
        caption = torch.full_like(caption, torch.nan)
    return caption, -image_nats.sum(dim=1)


@torch.inference_mode()
def complete(
    network: Prior, text: Tensor, *, sampling: Sampling | None = None, seed: int = 0
) -> Tensor:
    """Samples text tokens after each caption until the model ends it.

    Args:
        text: text tokens [B, T], negative after the caption's end. A caption may be empty if the
            stream has a start token.
        sampling: sampling settings; None uses the defaults. Guidance, weights and compile have no
            effect.
        seed: seed of the noise.

    Returns:
        Text tokens [B, T], negative after the new end.

    Raises:
        UserError: the prior does not predict text, or not the first text token of an empty caption.
    """
    sampling = sampling or Sampling()
    stream = network.stream
    if not isinstance(stream, TokenStream):
        raise UserError(
            "this prior reads features of a text encoder and cannot complete captions: use a prior "
            "with text tokens"
        )
    shortest = int((text >= 0).sum(dim=1).min())
    if shortest < stream.text_length - stream.predicted_text:
        raise UserError(
            "this prior has no start token and cannot complete an empty caption: begin each "
            "caption with a word"
        )
    uniform = candidate_noise(range(len(text)), range(1), stream.text_length, seed).to(text.device)
    text = text.clone()
    unfinished = torch.ones(len(text), dtype=torch.bool, device=text.device)
    for position in range(shortest, stream.text_length):
        in_prompt = text[:, position] >= 0
        logits = network.next_text(text[:, :position])
        token = stream.unpad(sample_from_logits(logits, uniform[:, position], sampling))
        unfinished &= in_prompt | (token >= 0)
        sampled = torch.where(unfinished, token, -1)
        text[:, position] = torch.where(in_prompt, text[:, position], sampled)
        if not unfinished.any():
            break
    return text
