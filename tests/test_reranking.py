"""Rankers, on untrained models."""

import copy

import pytest
import torch

from helpers.gray_model import CAPTIONS, GrayTiles, make_model
from tilewright.data import image_tokenizer
from tilewright.errors import UserError
from tilewright.pipeline import TextToImage
from tilewright.prior import Sampling
from tilewright.ranker import DualEncoder
from tilewright.reranking import ClipRanker, ContrastiveRanker, LikelihoodRanker


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    sizes = {"embedding": 8, "dim": 16, "heads": 2}
    return DualEncoder(text_vocab=300, text_length=8, image_size=16, grid=2, **sizes).eval()


@pytest.fixture(scope="module")
def cosine_ranker(model, network):
    return ContrastiveRanker(network, model.tokenizer, likelihood_weight=0)


@pytest.fixture(scope="module")
def weighted_ranker(model, network):
    return ContrastiveRanker(network, model.tokenizer, likelihood_weight=0.5)


def test_the_contrastive_ranker_without_likelihood_scores_by_the_cosine(
    model, network, cosine_ranker
):
    tokens = model.sample_tokens(CAPTIONS, 5)
    scores = model.score(cosine_ranker, CAPTIONS, tokens)
    with torch.no_grad():
        for i, caption in enumerate(CAPTIONS):
            text = network.encode_text(model.tokenizer.encode([caption]))
            images = network.encode_images(model.decode(tokens)[i])
            torch.testing.assert_close(scores[i], (images @ text[0]))


def test_the_contrastive_ranker_encodes_images_in_batches_that_fit_the_memory(
    model, network, cosine_ranker, monkeypatch
):
    tokens = model.sample_tokens(CAPTIONS, 5)
    expected = model.score(cosine_ranker, CAPTIONS, tokens)
    sizes, encode = [], network.encode_images
    monkeypatch.setattr(
        network, "encode_images", lambda images: sizes.append(len(images)) or encode(images)
    )
    monkeypatch.setattr(image_tokenizer, "BATCH_PIXELS", 4 * 16**2)
    torch.testing.assert_close(model.score(cosine_ranker, CAPTIONS, tokens), expected)
    assert sizes == [4, 4, 4, 3]


def test_the_contrastive_ranker_adds_the_likelihood_per_image_token(
    model, cosine_ranker, weighted_ranker
):
    tokens = model.sample_tokens(CAPTIONS, 5)
    scores = model.score(weighted_ranker, CAPTIONS, tokens)
    cosines = model.score(cosine_ranker, CAPTIONS, tokens)
    for i, caption in enumerate(CAPTIONS):
        _, image_log_p = model.log_likelihood([caption] * 5, model.decode(tokens)[i])
        torch.testing.assert_close(scores[i], cosines[i] + 0.5 * image_log_p / 4)


@pytest.mark.parametrize("name", ["weighted", "likelihood"])
def test_a_ranker_encodes_each_caption_once(model, weighted_ranker, monkeypatch, name):
    """A text encoder takes longer than the prior."""
    ranker = weighted_ranker if name == "weighted" else LikelihoodRanker()
    tokens, encoded = model.sample_tokens(CAPTIONS, 5), []
    model = copy.copy(model)
    model.tokenizer = copy.copy(model.tokenizer)
    encode = model.tokenizer.encode
    monkeypatch.setattr(
        model.tokenizer, "encode", lambda captions: encoded.extend(captions) or encode(captions)
    )
    model.score(ranker, CAPTIONS, tokens)
    assert encoded == list(CAPTIONS)


def test_the_likelihood_is_that_of_the_decoded_image_encoded_again(
    model, cosine_ranker, weighted_ranker
):
    class EvenTokens(GrayTiles):
        """Encodes an image to other tokens than those it was decoded from."""

        def encode(self, images):
            return super().encode(images) // 2 * 2

    coarse_model = TextToImage(model.prior, EvenTokens(), model.tokenizer)
    tokens = model.sample_tokens(CAPTIONS, 5)
    even_tokens = tokens // 2 * 2
    assert not torch.equal(even_tokens, tokens)

    def likelihood_term(model, tokens):
        weighted = model.score(weighted_ranker, CAPTIONS, tokens)
        return weighted - model.score(cosine_ranker, CAPTIONS, tokens)

    torch.testing.assert_close(
        likelihood_term(coarse_model, tokens), likelihood_term(model, even_tokens)
    )


def test_a_ranker_of_another_image_size_is_an_error_before_sampling(model, monkeypatch):
    network = DualEncoder(text_vocab=300, text_length=8, image_size=32, grid=4, dim=16, heads=2)
    ranker = ContrastiveRanker(network, model.tokenizer)
    monkeypatch.delattr(TextToImage, "sample_tokens")
    with pytest.raises(UserError, match="32 pixels a side, but the prior generates 16"):
        model.generate(CAPTIONS, 1, best_of=2, ranker=ranker)


def test_something_else_than_a_ranker_is_an_error(model):
    for ranker in (5, "likelihood"):
        with pytest.raises(UserError, match=f"^ranker={ranker!r} is not a ranker"):
            model(CAPTIONS, best_of=2, ranker=ranker)


def test_likelihood_scores_are_log_likelihood_ratios(model):
    tokens = model.sample_tokens(CAPTIONS, 4)
    scores = model.score(LikelihoodRanker(), CAPTIONS, tokens)
    for i, caption in enumerate(CAPTIONS):
        images = model.decode(tokens)[i]
        _, with_caption = model.log_likelihood([caption] * 4, images)
        _, without_caption = model.log_likelihood([""] * 4, images)
        torch.testing.assert_close(scores[i], with_caption - without_caption)


def test_likelihood_prefers_images_sampled_for_the_caption(model):
    """An image sampled for a caption is on average more likely with it than without it."""
    tokens = model.sample_tokens(CAPTIONS, 64, sampling=Sampling())
    conditional = model.score(LikelihoodRanker(), CAPTIONS, tokens)
    unconditional_tokens = model.sample_tokens([""] * 3, 64)
    unconditional = model.score(LikelihoodRanker(), CAPTIONS, unconditional_tokens)
    assert conditional.mean() > 0 > unconditional.mean()


def test_clip_scores_match_transformers(model, clip):
    from torchvision.transforms.functional import to_pil_image
    from transformers import CLIPModel, CLIPProcessor

    tokens = model.sample_tokens(CAPTIONS, 3)
    scores = model.score(ClipRanker(str(clip)), CAPTIONS, tokens)
    network = CLIPModel.from_pretrained(clip)
    processor = CLIPProcessor.from_pretrained(clip)
    for i, caption in enumerate(CAPTIONS):
        levels = (model.decode(tokens)[i] * 255).round().to(torch.uint8)
        images = [to_pil_image(image) for image in levels]
        inputs = processor(text=[caption], images=images, return_tensors="pt")
        with torch.no_grad():
            logits = network(**inputs).logits_per_text[0] / network.logit_scale.exp()
        torch.testing.assert_close(scores[i], logits)


def test_a_missing_clip_is_an_error(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match="cannot load a CLIP"):
        ClipRanker(str(tmp_path))
