"""What picks the best of N candidates (section 2.6): each scores how well pictures fit captions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tilewright import runs
from tilewright.data.tokenizer import BytePairTokenizer
from tilewright.errors import UserError
from tilewright.metrics.clip import load_clip
from tilewright.prior import Transformer, log_likelihood
from tilewright.ranker import DualEncoder
from tilewright.viz.images import to_levels

LIKELIHOOD = 0.1  # chosen on shapes, on captions that are not reported (docs/ranker.md)


class Model(Protocol):
    """What drew the candidates, as far as a ranker asks it: `TextToImage` is one."""

    prior: Transformer
    tokenizer: BytePairTokenizer

    def decode(self, tokens: Tensor) -> Tensor: ...

    def log_likelihood(self, captions: Sequence[str], images: Tensor) -> tuple[Tensor, Tensor]: ...


class Ranker(Protocol):
    """What `conf/ranker/<name>.yaml` builds."""

    def __call__(self, model: Model, captions: Sequence[str], tokens: Tensor) -> Tensor:
        """Scores [C, n], higher is better; only those of one caption are compared.

        Args:
            model: what drew the candidates.
            captions: C of them.
            tokens: image tokens [C, n, h, w] of the candidates.
        """
        ...


class ContrastiveRanker:
    """The cosine of a caption's and a picture's vectors, by a trained run of stage=ranker.

    Among many candidates there are some that are no whole picture and deceive a network that has
    seen true pictures alone. So the prior's opinion is added: `likelihood` times ln p(picture |
    caption), in nats per image token. It is asked about the tokens that the dVAE makes of the
    picture: those that it has drawn itself it finds likely, whatever they show.

    Args:
        network: the two encoders.
        tokenizer: what turns captions into their text tokens.
        likelihood: weight of the prior's opinion; 0 leaves the cosine alone, as in the paper.
    """

    def __init__(
        self, network: DualEncoder, tokenizer: BytePairTokenizer, likelihood: float = LIKELIHOOD
    ):
        self.network = network
        self.tokenizer = tokenizer
        self.likelihood = likelihood

    @classmethod
    def from_run(
        cls, run: str | Path, device: str = "cpu", likelihood: float = LIKELIHOOD
    ) -> "ContrastiveRanker":
        """The model that a run of stage=ranker trained, or that was exported from one.

        Args:
            likelihood: as of the class.

        Raises:
            UserError: there is no such run, or it is not whole.
        """
        run = Path(run)
        config = runs.load_config(run)
        if config.stage != "ranker":
            raise UserError(f"{run} is a run of stage={config.stage}, not of stage=ranker")
        network, tokenizer = runs.load_network(run, device), runs.load_tokenizer(run)
        text = getattr(network, "text_length", None), getattr(network, "text_vocab", None)
        if text != (tokenizer.length, tokenizer.vocab_size):
            raise UserError(
                f"the ranker in {run} reads {text[0]} text tokens of {text[1]}, and its tokenizer "
                f"makes {tokenizer.length} of {tokenizer.vocab_size}: they do not belong together"
            )
        return cls(network, tokenizer, likelihood)

    @torch.inference_mode()
    def __call__(self, model: Model, captions: Sequence[str], tokens: Tensor) -> Tensor:
        images = model.decode(tokens)
        if images.shape[-1] != self.network.image_size:
            raise UserError(
                f"this ranker reads pictures of side {self.network.image_size} and the prior draws "
                f"{images.shape[-1]}: train it on the same data, python src/train.py stage=ranker"
            )
        fit = cosines(self.encode_captions(captions), self.encode_images(images.flatten(0, 1)))
        if not self.likelihood:
            return fit
        repeated = [caption for caption in captions for _ in range(tokens.shape[1])]
        _, of_images = model.log_likelihood(repeated, images.flatten(0, 1))
        return fit + self.likelihood * of_images.view_as(fit) / tokens[0, 0].numel()

    def encode_captions(self, captions: Sequence[str]) -> Tensor:
        """Captions to unit vectors [B, D]."""
        device = self.network.log_scale.device
        return self.network.encode_text(self.tokenizer.encode(captions).to(device))

    def encode_images(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] to unit vectors [B, D]."""
        return self.network.encode_images(images)


class ClipRanker:
    """The cosine by a pretrained CLIP (a transformers model).

    Args:
        path: its folder, or its name on the Hugging Face Hub.
        device: where it computes.

    Raises:
        UserError: there is no such model, or the package transformers is not installed.
    """

    def __init__(self, path: str, device: str = "cpu"):
        model, self.processor = load_clip(path)
        self.model = model.to(device).requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, model: Model, captions: Sequence[str], tokens: Tensor) -> Tensor:
        # As in a PNG file: the score is that of the picture that a user gets.
        images = to_levels(model.decode(tokens).flatten(0, 1)).cpu()
        how = {"return_tensors": "pt", "padding": True}
        text = self.processor(text=list(captions), **how).to(self.model.device)
        pixels = self.processor(images=list(images), **how).to(self.model.device)
        features = self.model.get_text_features(**text), self.model.get_image_features(**pixels)
        return cosines(*features)


class LikelihoodRanker:
    """How much likelier the prior finds a picture under its caption than under none, in nats.

    By Bayes' rule that is ln p(caption | picture) up to a number that all candidates of a caption
    share. It needs no second model, but a prior that was trained with caption dropout.
    """

    @torch.inference_mode()
    def __call__(self, model: Model, captions: Sequence[str], tokens: Tensor) -> Tensor:
        stream, candidates = model.prior.stream, tokens.shape[1]
        text = model.tokenizer.encode(captions).to(tokens.device)
        empty = stream.empty_captions(len(text), tokens.device)
        under = [
            log_likelihood(
                model.prior, caption.repeat_interleave(candidates, dim=0), tokens.flatten(0, 1)
            )[1]
            for caption in (text, empty)
        ]
        return (under[0] - under[1]).view(tokens.shape[:2])


def cosines(text: Tensor, images: Tensor) -> Tensor:
    """Vectors [C, D] of captions and [C * n, D] of their candidates to cosines [C, n]."""
    text, images = F.normalize(text, dim=-1), F.normalize(images, dim=-1)
    return torch.einsum("cd,cnd->cn", text, images.unflatten(0, (len(text), -1)))


def candidates_of(n: int, best_of: int | None, ranker: Ranker | None) -> int:
    """How many candidates are drawn for each caption, of which the best `n` are kept.

    Raises:
        UserError: best_of is less than n, or more with nothing to rank by.
    """
    best_of = best_of or n
    if best_of < n:
        raise UserError(f"the best {n} of {best_of} cannot be had: raise best_of, or lower n")
    if best_of > n and ranker is None:
        raise UserError(f"best_of={best_of} needs a ranker to choose {n} with")
    return best_of
