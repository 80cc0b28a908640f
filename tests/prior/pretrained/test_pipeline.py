"""Public priors in the pipeline: best of N, image prompts, likelihoods and completion."""

import pytest
import torch
from PIL import Image

from helpers import public_priors
from tilewright import TextToImage
from tilewright.errors import UserError
from tilewright.prior import Sampling
from tilewright.reranking import LikelihoodRanker

CAPTIONS = ["a", "a red", "a red circle"]


class Tiles(torch.nn.Module):
    """Image tokenizer whose tokens are gray levels of 4x4 tiles."""

    image_size, grid, num_tokens = 8, 4, 24

    def encode(self, images):
        return (images[:, 0, ::2, ::2] * 23).round().long()

    def decode(self, tokens):
        gray = (tokens / 23)[:, None].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return gray.expand(-1, 3, -1, -1)


class Encoder:
    """Text encoder whose features or tokens are random, but fixed for each number of words."""

    truncated, vocab_size = 0, 40

    def __init__(self, name):
        sizes = getattr(public_priors, name.upper())
        self.length, self.width = sizes["text_length"], sizes.get("features")
        self.make_text = getattr(public_priors, f"{name}_text")

    def encode(self, captions, dropout=False):
        return torch.cat([self.make_text([len(caption.split())]) for caption in captions])

    def split_at_length(self, caption):
        return caption, ""

    def decode(self, tokens):
        return [" ".join("x" for token in row if token >= 0) for row in tokens.tolist()]


def make(name, **settings):
    layout = getattr(public_priors, f"{name}_layout")(**getattr(public_priors, name.upper()))
    prior = getattr(public_priors, f"make_{name}")(public_priors.random_weights(layout))
    return TextToImage(prior, Tiles(), Encoder(name), **settings)


@pytest.mark.parametrize("name", ["llamagen", "mindalle"])
def test_images_continue_a_prompt(name):
    model = make(name, sampling=Sampling(top_k=8))
    prompt = Image.linear_gradient("L").convert("RGB").resize((8, 8))
    images = model.generate(CAPTIONS, 2, image_prompt=prompt, rows=2).images
    assert images.shape == (3, 2, 3, 8, 8)
    top = images[..., :4, :]
    assert torch.equal(top, top[:1, :1].expand_as(top))
    assert len(images.flatten(0, 1).unique(dim=0)) == 6


def test_best_of_n_takes_the_most_likely_images_of_llamagen():
    model = make("llamagen", sampling=Sampling(guidance=2.0, top_k=8))
    ranker = LikelihoodRanker()
    best = model.generate(CAPTIONS, 2, best_of=4, ranker=ranker)
    tokens = model.sample_tokens(CAPTIONS, 4)
    scores = ranker(model, CAPTIONS, tokens)
    assert torch.equal(best.candidates, scores.argsort(dim=1, descending=True)[:, :2])
    log_text, log_image = model.log_likelihood(CAPTIONS, best.images[:, 0])
    assert log_text.isnan().all()
    assert log_image.isfinite().all()
    with pytest.raises(UserError, match="cannot complete captions"):
        model.complete(CAPTIONS)


def test_mindalle_refuses_guidance_and_completes_captions():
    model = make("mindalle", caption_dropout=0.0)
    with pytest.raises(UserError, match="needs a prior that has seen empty captions"):
        model.generate(CAPTIONS, sampling=Sampling(guidance=2.0))
    with pytest.raises(UserError, match="LikelihoodRanker needs a prior"):
        model.generate(CAPTIONS, best_of=2, ranker=LikelihoodRanker())
    numbers = [len(caption.split()) for caption in model.complete(CAPTIONS)]
    assert all(number >= words for words, number in enumerate(numbers, start=1))
    with pytest.raises(UserError, match="no start token"):
        model.complete(["a", ""])
