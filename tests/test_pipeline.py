"""Text-to-image pipeline, on an untrained model."""

import math
from itertools import pairwise

import pytest
import torch
from PIL import Image

from helpers.gray_model import CAPTIONS, BrightnessRanker, GrayTiles, make_model, make_tokenizer
from tilewright import pipeline
from tilewright.checks import format_value
from tilewright.data import BytePairTokenizer, image_tokenizer
from tilewright.errors import UserError
from tilewright.pipeline import TextToImage
from tilewright.prior import Sampling
from tilewright.reranking import LikelihoodRanker
from tilewright.viz.images import to_pil


@pytest.fixture(scope="module")
def model():
    return make_model()


def brightness(images):
    return images.mean(dim=(2, 3, 4))


def test_generate_returns_the_candidates_with_the_highest_scores(model):
    best = model.generate(CAPTIONS, 3, best_of=20, ranker=BrightnessRanker())
    scores, candidates = brightness(model.generate(CAPTIONS, 20).images).sort(
        dim=1, descending=True, stable=True
    )
    torch.testing.assert_close(best.scores, scores[:, :3])
    assert torch.equal(best.candidates, candidates[:, :3])
    torch.testing.assert_close(brightness(best.images), scores[:, :3])


def test_the_recommended_sampling_is_the_default_of_all_calls(model):
    sampling = Sampling(temperature=0.1, top_k=2)
    other = TextToImage(model.prior, model.image_tokenizer, model.tokenizer, sampling=sampling)
    for call in ("generate", "sample_tokens", "complete", "__call__"):
        default, explicit = getattr(other, call)(CAPTIONS), getattr(model, call)
        expected = explicit(CAPTIONS, sampling=sampling)
        if call == "generate":
            default, expected = default.images, expected.images
        equal = torch.equal if isinstance(default, torch.Tensor) else lambda a, b: a == b
        assert equal(default, expected)
        assert not equal(default, getattr(explicit(CAPTIONS), "images", explicit(CAPTIONS)))


def test_generate_without_a_ranker_keeps_the_order_of_candidates(model):
    generated = model.generate(CAPTIONS, 4)
    assert generated.scores is None
    assert generated.candidates.tolist() == [[0, 1, 2, 3]] * 3
    tokens = model.sample_tokens(CAPTIONS, 4)
    torch.testing.assert_close(generated.images, model.decode(tokens))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(({"n": n}, f"n={n} is not possible: set a whole number of 1 or more")
          for n in (0, -1, 1.5, math.nan, "2")),
        ({"n": True}, "n=true is not possible"),
        ({"best_of": 1.5}, "best_of=1.5 is not possible"),
        ({"best_of": -2}, "best_of=-2 is not possible"),
        ({"batch_size": 0}, "batch_size=0 is not possible"),
        ({"batch_size": 0.5}, "batch_size=0.5 is not possible"),
        ({"seed": 99999999999999999999}, "seed=99999999999999999999 is not possible"),
        ({"seed": 0.5}, "seed=0.5 is not possible"),
        ({"rows": 1}, "rows=1 needs an image"),
        ({"n": 4, "best_of": 2}, "best_of=2 is smaller than n=4"),
        ({"n": 4, "best_of": 9}, "needs a ranker"),
    ],
)  # fmt: skip
def test_generate_rejects_impossible_numbers(model, arguments, message):
    with pytest.raises(UserError, match=message):
        model(CAPTIONS, **arguments)


def test_a_call_returns_pil_images(model):
    images = model(CAPTIONS, 2, seed=3)
    tensors = model.generate(CAPTIONS, 2, seed=3).images
    assert images == [[to_pil(image) for image in row] for row in tensors]


def test_a_call_with_best_of_uses_the_models_own_ranker(model):
    ranked = TextToImage(model.prior, model.image_tokenizer, model.tokenizer, BrightnessRanker())
    best = model.generate(CAPTIONS, 2, best_of=9, ranker=BrightnessRanker()).images
    assert ranked(CAPTIONS, 2, best_of=9) == [[to_pil(image) for image in row] for row in best]


def test_records_name_the_prompt_the_candidate_and_the_score(model):
    generated = model.generate(CAPTIONS[:1], 1, best_of=9, ranker=BrightnessRanker())
    ((record,),) = generated.records(CAPTIONS[:1])
    assert record == {
        "prompt": CAPTIONS[0],
        "candidate": int(generated.candidates[0, 0]),
        "score": float(generated.scores[0, 0]),
    }
    ((record,),) = model.generate(CAPTIONS[:1]).records(CAPTIONS[:1])
    assert record == {"prompt": CAPTIONS[0], "candidate": 0}


@pytest.mark.parametrize("batch_size", [1, 4, 10, 25])
def test_samples_do_not_depend_on_the_batch_size(model, batch_size):
    tokens = model.sample_tokens(CAPTIONS, 10)
    assert tokens.shape == (3, 10, 2, 2)
    assert torch.equal(model.sample_tokens(CAPTIONS, 10, batch_size=batch_size), tokens)


def test_sampling_by_row_fills_the_grids_from_the_top(model):
    tokens = model.sample_tokens(CAPTIONS, 5)
    steps = [step.clone() for step in model.sample_tokens_by_row(CAPTIONS, 5, batch_size=4)]
    assert len(steps) == 3 * 2 * 2  # captions, batches per caption, rows
    for before, after in pairwise(steps):
        assert torch.equal(after[before >= 0], before[before >= 0])
        assert (before < 0).sum() > (after < 0).sum()
    first = tokens.clone()
    first[1:], first[0, 4:], first[0, :, 1:] = -1, -1, -1
    assert torch.equal(steps[0], first)
    assert torch.equal(steps[-1], tokens)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK"])
def test_an_image_prompt_of_any_mode_fixes_the_top_rows(model, mode):
    prompt = Image.new("RGB", (40, 30), "white").convert(mode)
    tokens = model.sample_tokens(CAPTIONS, 6, image_prompt=prompt, rows=1)
    assert (tokens[:, :, 0] == 7).all()
    assert len(tokens[:, :, 1].unique()) > 1


@pytest.mark.parametrize("rows", [-1, 0, 2, 0.5, True])
def test_an_image_prompt_keeps_and_leaves_at_least_one_row(model, rows):
    with pytest.raises(
        UserError, match=f"rows={format_value(rows)} is not possible: .* from 1 to 1"
    ):
        model.sample_tokens(CAPTIONS, image_prompt=Image.new("RGB", (16, 16)), rows=rows)


@pytest.mark.parametrize("captions", ["a red circle", [], [None], ["a", 7]])
def test_captions_are_a_list_of_strings(model, captions):
    with pytest.raises(UserError, match="is not a list of captions"):
        model.generate(captions)
    with pytest.raises(UserError, match="is not a list of captions"):
        model.complete(captions)


@pytest.mark.parametrize("sampling", [3, 0, {"temperature": 1}])
def test_a_sampling_of_another_type_is_refused(model, sampling):
    with pytest.raises(UserError, match="is not a Sampling: write it like"):
        model(CAPTIONS, sampling=sampling)
    with pytest.raises(UserError, match="is not a Sampling: write it like"):
        model.complete(CAPTIONS, sampling=sampling)


def test_guidance_and_likelihood_ranker_need_a_prior_that_has_seen_empty_captions(model):
    def remake(caption_dropout):
        parts = (model.prior, model.image_tokenizer, model.tokenizer)
        return TextToImage(*parts, caption_dropout=caption_dropout)

    guided = {"sampling": Sampling(guidance=1.5)}
    ranked = {"best_of": 2, "ranker": LikelihoodRanker()}
    for caption_dropout in (None, 0.1):
        for arguments in (guided, ranked):
            assert remake(caption_dropout)(CAPTIONS, **arguments)
    never = remake(0.0)
    assert never(CAPTIONS, best_of=2, ranker=BrightnessRanker())
    message = "needs a prior that has seen empty captions.* model.caption_dropout=0:"
    with pytest.raises(UserError, match=f"^guidance=1.5 {message} leave guidance out"):
        never(CAPTIONS, **guided)
    with pytest.raises(UserError, match=f"^LikelihoodRanker {message}"):
        never(CAPTIONS, **ranked)
    with pytest.raises(UserError, match=f"^LikelihoodRanker {message}"):
        never.score(LikelihoodRanker(), CAPTIONS, never.sample_tokens(CAPTIONS, 2))


def test_scores_that_are_nan_are_refused(model):
    def lost(model, captions, tokens):
        return torch.full(tokens.shape[:2], torch.nan)

    with pytest.raises(UserError, match="scores of function are nan"):
        model(CAPTIONS, best_of=2, ranker=lost)


def test_scores_do_not_depend_on_the_batch_size(model):
    tokens = model.sample_tokens(CAPTIONS, 10)
    one_batch, small_batches = BrightnessRanker(), BrightnessRanker()
    scores = model.score(one_batch, CAPTIONS, tokens)
    assert one_batch.batch_sizes == [30]
    torch.testing.assert_close(model.score(small_batches, CAPTIONS, tokens, batch_size=4), scores)
    assert max(small_batches.batch_sizes) == 4
    assert sum(small_batches.batch_sizes) == 30


def test_batches_of_images_fit_the_memory(model, monkeypatch):
    """A public prior of 36 layers needs 138 MB for each image, and twice that with guidance."""
    tokens, images = model.sample_tokens(CAPTIONS, 5), model.generate(CAPTIONS, 5).images
    _, caches = model.prior.prefill(torch.zeros(1, 8, dtype=torch.long), 1)
    assert model.prior.cache_bytes == sum(cache.nbytes for cache in caches)
    limits = [model._max_batch(model._cache_bytes(guidance)) for guidance in (1.0, 3.0)]
    assert min(limits) > 128
    monkeypatch.setattr(pipeline, "FREE_BYTES", 9 * model.prior.cache_bytes)
    limits = [model._max_batch(model._cache_bytes(guidance)) for guidance in (1.0, 3.0)]
    assert limits == [4, 2]
    sizes, prefill = [], model.prior.prefill
    monkeypatch.setattr(
        model.prior, "prefill", lambda text, n: sizes.append(len(text) * n) or prefill(text, n)
    )
    monkeypatch.setattr(image_tokenizer, "BATCH_PIXELS", 3 * 16**2)
    generated = model.generate(CAPTIONS, 5)
    assert max(sizes) == 4
    assert torch.equal(generated.images, images)
    assert torch.equal(model.sample_tokens(CAPTIONS, 5), tokens)


def test_scored_logits_fit_the_memory(model, monkeypatch):
    """Text logits of 256 tokens and 16,640 classes take 17 MB for each image."""
    tokens, stream = model.sample_tokens(CAPTIONS, 5), model.prior.stream
    images = model.decode(tokens)[:, 0]
    expected = model.log_likelihood(CAPTIONS, images)
    with torch.inference_mode():
        logits = model.prior(torch.zeros(1, 8, dtype=torch.long), tokens[0, :1])
    logits = [part.numel() for part in logits]
    assert sum(logits) == (
        stream.predicted_text * stream.text_classes + stream.image_length * stream.image_vocab
    )
    each = model.prior.cache_bytes + 4 * sum(logits)
    monkeypatch.setattr(pipeline, "FREE_BYTES", 2 * 2 * each)
    ranker, sizes, forward = BrightnessRanker(), [], model.prior.forward
    monkeypatch.setattr(
        model.prior, "forward", lambda *pair: sizes.append(len(pair[0])) or forward(*pair)
    )
    model.score(ranker, CAPTIONS, tokens)
    assert max(ranker.batch_sizes) == 2
    torch.testing.assert_close(model.log_likelihood(CAPTIONS, images), expected)
    assert sizes == [2, 1]


def test_images_are_encoded_in_batches_that_fit_the_memory(model, monkeypatch):
    images = torch.rand(7, 3, 16, 16)
    expected = model.image_tokenizer.encode(images)
    sizes, encode = [], model.image_tokenizer.encode
    monkeypatch.setattr(
        model.image_tokenizer, "encode", lambda batch: sizes.append(len(batch)) or encode(batch)
    )
    monkeypatch.setattr(image_tokenizer, "BATCH_PIXELS", 3 * 16**2)
    assert torch.equal(model.encode(images), expected)
    assert sizes == [3, 3, 1]


@pytest.mark.parametrize("ranker", [None, BrightnessRanker()])
def test_images_are_decoded_in_batches_of_batch_size(model, monkeypatch, ranker):
    sizes, decode = [], model.image_tokenizer.decode
    monkeypatch.setattr(
        model.image_tokenizer, "decode", lambda tokens: sizes.append(len(tokens)) or decode(tokens)
    )
    model.generate(CAPTIONS, 5, ranker=ranker, batch_size=4)
    assert max(sizes) == 4


def test_a_path_as_an_image_prompt_is_an_error(model):
    with pytest.raises(UserError, match=r"image_prompt='photo\.png' is not a PIL image"):
        model(CAPTIONS, image_prompt="photo.png", rows=1)


def test_complete_continues_a_caption(model):
    (caption,) = model.complete(["a red"], sampling=Sampling(temperature=0))
    assert caption.startswith("a red")


def test_the_vocabularies_must_match(model):
    class LargerCodebook(GrayTiles):
        num_tokens = 16

    with pytest.raises(UserError, match="2x2 image tokens from a codebook of 8"):
        TextToImage(model.prior, LargerCodebook(), model.tokenizer)
    shorter = BytePairTokenizer(vocab_size=300, length=5, dropout=0.0)
    with pytest.raises(UserError, match="8 text tokens from a vocabulary of 300"):
        TextToImage(model.prior, GrayTiles(), shorter)
    with pytest.raises(UserError, match="Linear has no stream"):
        TextToImage(torch.nn.Linear(1, 1), GrayTiles(), make_tokenizer())


def test_one_warning_shows_where_a_caption_is_cut(model, caplog):
    caption = "a red circle a blue ring red circle blue ring"
    for _ in range(2):
        model([caption], sampling=Sampling(0))
    (message,) = caplog.messages
    assert message == (
        "1 caption is longer than 8 text tokens and cut: it keeps 'a red circle a blue ring red' "
        "and drops 'circle blue ring'"
    )
