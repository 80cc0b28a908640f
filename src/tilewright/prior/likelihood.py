"""The joint model read in other directions: how likely a pair is, how a caption goes on."""

import torch
from torch import Tensor

from tilewright.prior.sampler import Sampling, candidate_noise, draw
from tilewright.prior.transformer import Transformer


@torch.inference_mode()
def log_likelihood(network: Transformer, text: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """ln p(caption) [B] and ln p(picture | caption) [B], in nats; their sum is the pair's.

    Of the text those tokens count that counted in training (`Stream.padding_targets`): by default
    the caption's and the padding token that ends it.

    Args:
        text: text tokens [B, T], negative past their end.
        image: image tokens [B, h, w].
    """
    text_logits, image_logits = network(text, image)
    of_text, of_image = network.stream.nats(text_logits, image_logits, text, image)
    return -(of_text * network.stream.counts(text)).sum(dim=1), -of_image.sum(dim=1)


@torch.inference_mode()
def complete(
    network: Transformer, text: Tensor, *, sampling: Sampling | None = None, seed: int = 0
) -> Tensor:
    """Captions to which the model adds token after token until it ends them.

    Args:
        text: text tokens [B, T], negative past their end; a whole empty caption is a beginning too.

    Returns:
        Text tokens [B, T], negative past their new end.
    """
    sampling = sampling or Sampling()
    stream = network.stream
    uniform = candidate_noise(range(len(text)), range(1), stream.text_length, seed).to(text.device)
    text = text.clone()
    going = torch.ones(len(text), dtype=torch.bool, device=text.device)
    for position in range(int((text >= 0).sum(dim=1).min()), stream.text_length):
        given = text[:, position] >= 0
        logits = network.next_text(text[:, :position])
        token = draw(logits, uniform[:, position], sampling)
        going &= given | (token < stream.text_vocab)
        text[:, position] = torch.where(given, text[:, position], torch.where(going, token, -1))
        if not going.any():
            break
    return text
