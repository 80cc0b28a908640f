"""Other uses of the joint model: log-likelihood of a pair, and completion of captions."""

import torch
from torch import Tensor

from tilewright.prior.protocol import Prior
from tilewright.prior.sampler import Sampling, candidate_noise, sample_from_logits


@torch.inference_mode()
def log_likelihood(network: Prior, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Computes ln p(caption) [B] and ln p(image | caption) [B], in nats.

    Their sum is ln p of the pair. The caption's likelihood covers the same text tokens as the
    training loss (`Stream.padding_targets`): by default its BPE tokens and the padding token that
    ends it.

    Args:
        text: text tokens [B, T], negative after the caption's end.
        image: image tokens [B, h, w].
    """
    text_logits, image_logits = network(text, image)
    stream = network.stream
    text_nats, image_nats = stream.token_nats(text_logits, image_logits, text, image)
    return -(text_nats * stream.text_targets(text)).sum(dim=1), -image_nats.sum(dim=1)


@torch.inference_mode()
def complete(
    network: Prior, text: Tensor, *, sampling: Sampling | None = None, seed: int = 0
) -> Tensor:
    """Samples text tokens after each caption until the model ends it.

    Args:
        text: text tokens [B, T], negative after the caption's end. A caption may be empty.
        sampling: sampling settings; None uses the defaults. Guidance, weights and compile have no
            effect.
        seed: seed of the noise.

    Returns:
        Text tokens [B, T], negative after the new end.
    """
    sampling = sampling or Sampling()
    stream = network.stream
    uniform = candidate_noise(range(len(text)), range(1), stream.text_length, seed).to(text.device)
    text = text.clone()
    unfinished = torch.ones(len(text), dtype=torch.bool, device=text.device)
    for position in range(int((text >= 0).sum(dim=1).min()), stream.text_length):
        in_prompt = text[:, position] >= 0
        logits = network.next_text(text[:, :position])
        token = sample_from_logits(logits, uniform[:, position], sampling)
        unfinished &= in_prompt | (token < stream.text_vocab)
        sampled = torch.where(unfinished, token, -1)
        text[:, position] = torch.where(in_prompt, text[:, position], sampled)
        if not unfinished.any():
            break
    return text
