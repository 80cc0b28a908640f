"""Rankers and the choice of the best of N, on models without training."""

from itertools import pairwise

import pytest
import torch

from tilewright.data import BytePairTokenizer
from tilewright.errors import UserError
from tilewright.pipeline import TextToImage
from tilewright.prior import Sampling, Stream, Transformer
from tilewright.ranker import DualEncoder
from tilewright.reranking import ClipRanker, ContrastiveRanker, LikelihoodRanker

CAPTIONS = ["a red circle", "a blue ring", "two stars"]


class GreyLevels:
    """An image tokenizer whose token k is a tile of gray k / 7."""

    image_size, grid, num_tokens = 16, 2, 8

    def encode(self, images):
        return (images.mean(dim=1)[:, 4::8, 4::8] * 7).round().long()

    def decode(self, tokens):
        tiles = tokens.float()[:, None] / 7
        return tiles.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)


class Brightest:
    """Prefers light pictures, and keeps count of how many it is shown at once."""

    def __init__(self):
        self.shown = []

    def __call__(self, model, captions, tokens):
        self.shown.append(tokens.shape[0] * tokens.shape[1])
        return model.decode(tokens).mean(dim=(2, 3, 4))


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = BytePairTokenizer(vocab_size=300, length=8, dropout=0.0)
    tokenizer.train(CAPTIONS)
    return tokenizer


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    stream = Stream(text_length=8, text_vocab=300, grid=2, image_vocab=8)
    prior = Transformer(stream, dim=16, depth=2, heads=2).eval()
    with torch.no_grad():  # as at 0.02 captions hardly matter
        for parameter in prior.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return TextToImage(prior, GreyLevels(), tokenizer)


@pytest.fixture(scope="module")
def contrastive(tokenizer):
    torch.manual_seed(0)
    sizes = {"embedding": 8, "dim": 16, "heads": 2}
    network = DualEncoder(text_vocab=300, text_length=8, image_size=16, grid=2, **sizes)
    return ContrastiveRanker(network.eval(), tokenizer, likelihood=0)


def test_the_best_are_the_highest_of_all(model):
    best = model.best(CAPTIONS, 3, best_of=20, ranker=Brightest())
    everything = model.images(CAPTIONS, 20).mean(dim=(2, 3, 4))
    want, numbers = everything.sort(dim=1, descending=True, stable=True)
    torch.testing.assert_close(best.scores, want[:, :3])
    assert torch.equal(best.numbers, numbers[:, :3])
    torch.testing.assert_close(best.images.mean(dim=(2, 3, 4)), want[:, :3])


def test_pictures_are_the_same_however_they_are_batched(model):
    whole = model.tokens(CAPTIONS, 10)
    assert whole.shape == (3, 10, 2, 2)
    for batch_size in (1, 4, 10, 25):
        assert torch.equal(model.tokens(CAPTIONS, 10, batch_size=batch_size), whole)


def test_a_drawing_fills_up(model):
    whole = model.tokens(CAPTIONS, 5)
    drawn = [tokens.clone() for tokens in model.drawing(CAPTIONS, 5, batch_size=4)]
    assert len(drawn) == 3 * 2 * 2  # captions, batches of a caption's candidates, rows
    for before, after in pairwise(drawn):
        assert torch.equal(after[before >= 0], before[before >= 0])
        assert (before < 0).sum() > (after < 0).sum()
    row = whole.clone()
    row[1:], row[0, 4:], row[0, :, 1:] = -1, -1, -1
    assert torch.equal(drawn[0], row)
    assert torch.equal(drawn[-1], whole)


def test_scores_come_in_batches_that_fit(model):
    tokens, whole = model.tokens(CAPTIONS, 10), Brightest()
    want = model.scores(whole, CAPTIONS, tokens)
    assert whole.shown == [30]
    parts = Brightest()
    torch.testing.assert_close(model.scores(parts, CAPTIONS, tokens, batch_size=4), want)
    assert max(parts.shown) == 4
    assert sum(parts.shown) == 30


def test_without_a_ranker_they_come_in_their_order(model):
    best = model.best(CAPTIONS, 4)
    assert best.scores is None
    assert best.numbers.tolist() == [[0, 1, 2, 3]] * 3
    torch.testing.assert_close(best.images, model.images(CAPTIONS, 4))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [({"best_of": 2, "ranker": Brightest()}, "raise best_of"), ({"best_of": 9}, "needs a ranker")],
)
def test_what_cannot_be_chosen(model, arguments, word):
    with pytest.raises(UserError, match=word):
        model.best(CAPTIONS, 4, **arguments)


def test_contrastive_scores_are_cosines(model, contrastive, tokenizer):
    tokens = model.tokens(CAPTIONS, 5)
    scores = model.scores(contrastive, CAPTIONS, tokens)
    network = contrastive.network
    with torch.no_grad():
        for i, caption in enumerate(CAPTIONS):
            text = network.encode_text(tokenizer.encode([caption]))
            images = network.encode_images(model.decode(tokens)[i])
            torch.testing.assert_close(scores[i], (images @ text[0]))


def test_the_priors_opinion_is_added_per_image_token(model, contrastive, tokenizer):
    tokens = model.tokens(CAPTIONS, 5)
    both = ContrastiveRanker(contrastive.network, tokenizer, likelihood=0.5)
    scores = model.scores(both, CAPTIONS, tokens)
    cosines = model.scores(contrastive, CAPTIONS, tokens)
    for i, caption in enumerate(CAPTIONS):
        _, of_image = model.log_likelihood([caption] * 5, model.decode(tokens)[i])
        torch.testing.assert_close(scores[i], cosines[i] + 0.5 * of_image / 4)


def test_the_prior_is_asked_about_the_tokens_that_the_picture_encodes_to(model, contrastive):
    """Which are not always those that were drawn."""

    class Coarse(GreyLevels):
        def encode(self, images):
            return super().encode(images) // 2 * 2

    coarse = TextToImage(model.prior, Coarse(), model.tokenizer)
    tokens = model.tokens(CAPTIONS, 5)
    both = ContrastiveRanker(contrastive.network, model.tokenizer, likelihood=0.5)
    cosines = model.scores(contrastive, CAPTIONS, tokens)
    added = coarse.scores(both, CAPTIONS, tokens) - cosines
    even = tokens // 2 * 2
    assert not torch.equal(even, tokens)
    cosines_of_even = model.scores(contrastive, CAPTIONS, even)
    torch.testing.assert_close(added, model.scores(both, CAPTIONS, even) - cosines_of_even)


def test_a_ranker_of_another_size(model, tokenizer):
    network = DualEncoder(text_vocab=300, text_length=8, image_size=32, grid=4, dim=16, heads=2)
    ranker = ContrastiveRanker(network, tokenizer)
    with pytest.raises(UserError, match="stage=ranker"):
        model.best(CAPTIONS, 1, best_of=2, ranker=ranker)


def test_likelihood_scores_are_differences_of_log_likelihoods(model):
    tokens = model.tokens(CAPTIONS, 4)
    scores = model.scores(LikelihoodRanker(), CAPTIONS, tokens)
    for i, caption in enumerate(CAPTIONS):
        images = model.decode(tokens)[i]
        _, under_caption = model.log_likelihood([caption] * 4, images)
        _, under_none = model.log_likelihood([""] * 4, images)
        torch.testing.assert_close(scores[i], under_caption - under_none)


def test_likelihood_finds_pictures_that_were_drawn_for_the_caption(model):
    """Bayes: a picture drawn under its caption is likelier under that than under none."""
    tokens = model.tokens(CAPTIONS, 64, sampling=Sampling())
    own = model.scores(LikelihoodRanker(), CAPTIONS, tokens)
    other = model.scores(LikelihoodRanker(), CAPTIONS, model.tokens([""] * 3, 64))
    assert own.mean() > 0 > other.mean()


def test_clip_scores_are_its_own(model, clip):
    from torchvision.transforms.functional import to_pil_image
    from transformers import CLIPModel, CLIPProcessor

    tokens = model.tokens(CAPTIONS, 3)
    scores = model.scores(ClipRanker(str(clip)), CAPTIONS, tokens)
    network = CLIPModel.from_pretrained(clip)
    processor = CLIPProcessor.from_pretrained(clip)
    for i, caption in enumerate(CAPTIONS):
        images = (model.decode(tokens)[i] * 255).round().to(torch.uint8)
        pictures = [to_pil_image(image) for image in images]
        inputs = processor(text=[caption], images=pictures, return_tensors="pt")
        with torch.no_grad():
            logits = network(**inputs).logits_per_text[0] / network.logit_scale.exp()
        torch.testing.assert_close(scores[i], logits)


def test_no_clip(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match="cannot load a CLIP"):
        ClipRanker(str(tmp_path))
