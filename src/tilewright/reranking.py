"""Rankers, which score how well candidate images fit captions (section 2.6)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tilewright import runs
from tilewright.checks import check_number, check_whole
from tilewright.data.image_tokenizer import ImageTokenizer, split_batches
from tilewright.data.text_tokenizer import TextTokenizer
from tilewright.errors import UserError
from tilewright.metrics.clip import load_clip
from tilewright.prior import Prior, log_likelihood
from tilewright.ranker import DualEncoder
from tilewright.viz.images import to_uint8

LIKELIHOOD_WEIGHT = 0.1  # tuned on shapes, on captions that docs/ranker.md does not report


class TextToImageModel(Protocol):
    """The part of `TextToImage` that rankers use."""

    prior: Prior
    image_tokenizer: ImageTokenizer
    tokenizer: TextTokenizer

    def decode(self, tokens: Tensor) -> Tensor: ...

    def encode(self, images: Tensor) -> Tensor: ...


class Ranker(Protocol):
    """Interface of the classes that `conf/ranker/<name>.yaml` builds."""

    def __call__(self, model: TextToImageModel, captions: Sequence[str], tokens: Tensor) -> Tensor:
        """Scores the candidates of each caption, [C, n]; higher is better.

        Scores are only compared within one caption.

        Args:
            model: the model that generated the candidates.
            captions: C captions.
            tokens: image tokens [C, n, h, w] of the candidates.
        """
        ...


class ContrastiveRanker:
    """Cosine similarity of caption and image in a trained ranker, plus the prior's likelihood.

    The ranker has only seen real images, so a malformed candidate can get a high score. The score
    therefore adds `likelihood_weight` times ln p(image | caption), in nats per image token. It is
    computed for the decoded image, encoded again. The prior gives the tokens that it sampled a high
    likelihood even if the image is wrong.

    Args:
        network: text and image encoder.
        tokenizer: encodes captions for the text encoder.
        likelihood_weight: weight of the prior's log-likelihood; 0 ranks by the cosine alone, as in
            the paper.

    Raises:
        UserError: the weight is not a number of 0 or more.
    """

    def __init__(
        self,
        network: DualEncoder,
        tokenizer: TextTokenizer,
        likelihood_weight: float = LIKELIHOOD_WEIGHT,
    ):
        check_number("likelihood_weight", likelihood_weight, 0)
        self.network = network
        self.tokenizer = tokenizer
        self.likelihood_weight = likelihood_weight

    @classmethod
    def from_run(
        cls, run: str | Path, device: str = "cpu", likelihood_weight: float = LIKELIHOOD_WEIGHT
    ) -> "ContrastiveRanker":
        """Loads a run of stage=ranker, or a model exported from one.

        Raises:
            UserError: the run does not exist, is incomplete, or has another stage.
        """
        run = Path(run)
        config = runs.load_config(run)
        if config.stage != "ranker":
            raise UserError(
                f"{run} is a run of stage={config.stage} and cannot rank images: name a run of "
                "stage=ranker"
            )
        network, tokenizer = runs.load_network(run, device), runs.load_tokenizer(run)
        text = getattr(network, "text_length", None), getattr(network, "text_vocab", None)
        if text != (tokenizer.length, tokenizer.vocab_size):
            raise UserError(
                f"the ranker in {run} reads {text[0]} text tokens from a vocabulary of {text[1]}, "
                f"but its tokenizer makes {tokenizer.length} from {tokenizer.vocab_size}: use the "
                "tokenizer that the ranker was trained with"
            )
        return cls(network, tokenizer, likelihood_weight)

    @property
    def image_size(self) -> int:
        """Side of the images that the network reads, in pixels. `TextToImage` checks it."""
        return self.network.image_size

    @torch.inference_mode()
    def __call__(self, model: TextToImageModel, captions: Sequence[str], tokens: Tensor) -> Tensor:
        images = model.decode(tokens).flatten(0, 1)
        scores = cosine_similarities(self.encode_captions(captions), self.encode_images(images))
        if not self.likelihood_weight:
            return scores
        text = model.tokenizer.encode(captions).to(tokens.device)
        tokens = model.encode(images).view_as(tokens)
        image_log_p = image_log_likelihood(model.prior, text, tokens)
        return scores + self.likelihood_weight * image_log_p / tokens[0, 0].numel()

    def encode_captions(self, captions: Sequence[str]) -> Tensor:
        """Encodes captions as unit vectors [B, D]."""
        device = self.network.log_scale.device
        return self.network.encode_text(self.tokenizer.encode(captions).to(device))

    def encode_images(self, images: Tensor) -> Tensor:
        """Encodes images [B, 3, H, W] in [0, 1] as unit vectors [B, D]."""
        batches = split_batches(images, self.image_size)
        return torch.cat([self.network.encode_images(batch) for batch in batches])


class ClipRanker:
    """Cosine similarity of caption and image in a pretrained CLIP of the transformers package.

    Args:
        path: folder of the CLIP, or its name on the Hugging Face Hub.
        device: device of the CLIP.

    Raises:
        UserError: the CLIP does not exist, or transformers is not installed.
    """

    def __init__(self, path: str, device: str = "cpu"):
        model, self.processor = load_clip(path)
        self.model = model.to(device).requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, model: TextToImageModel, captions: Sequence[str], tokens: Tensor) -> Tensor:
        # The score belongs to the image as saved, in 8 bits.
        images = to_uint8(model.decode(tokens).flatten(0, 1)).cpu()
        text = self.processor(text=list(captions), return_tensors="pt", padding=True)
        pixels = self.processor(images=list(images), return_tensors="pt", padding=True)
        return cosine_similarities(
            self.model.get_text_features(**text.to(self.model.device)),
            self.model.get_image_features(**pixels.to(self.model.device)),
        )


class LikelihoodRanker:
    """Log-likelihood ratio of an image under its caption and under an empty caption, in nats.

    By Bayes' rule this equals ln p(caption | image) up to a constant per caption. It needs no
    second model, but the prior must have been trained with caption dropout.
    """

    needs_empty_captions = True  # `TextToImage` refuses it for a prior that has never seen one

    @torch.inference_mode()
    def __call__(self, model: TextToImageModel, captions: Sequence[str], tokens: Tensor) -> Tensor:
        text = model.tokenizer.encode(captions).to(tokens.device)
        empty = model.prior.stream.without_caption(text)
        log_p = image_log_likelihood(model.prior, text, tokens)
        return log_p - image_log_likelihood(model.prior, empty, tokens)


def image_log_likelihood(prior: Prior, text: Tensor, tokens: Tensor) -> Tensor:
    """Returns ln p(image | caption) [C, n] in nats of image tokens [C, n, h, w].

    Args:
        text: text of the stream of C captions.
    """
    text = text.repeat_interleave(tokens.shape[1], dim=0)
    return log_likelihood(prior, text, tokens.flatten(0, 1))[1].view(tokens.shape[:2])


def cosine_similarities(text: Tensor, images: Tensor) -> Tensor:
    """Returns cosines [C, n] of caption vectors [C, D] and candidate vectors [C * n, D]."""
    text, images = F.normalize(text, dim=-1), F.normalize(images, dim=-1)
    return torch.einsum("cd,cnd->cn", text, images.unflatten(0, (len(text), -1)))


def resolve_best_of(n: int, best_of: int | None, ranker: Ranker | None) -> int:
    """Returns the number of candidates per caption: `best_of`, or `n` if it is None or 0.

    Raises:
        UserError: n or best_of is not possible, or best_of is less than n, or greater than n
            without a ranker.
    """
    check_whole("n", n)
    if not best_of:
        return n
    check_whole("best_of", best_of)
    if best_of < n:
        raise UserError(f"best_of={best_of} is smaller than n={n}: raise best_of or lower n")
    if best_of > n and ranker is None:
        raise UserError(
            f"best_of={best_of} needs a ranker to choose {n}: set one, or lower best_of"
        )
    return best_of
