"""Text tokenizer: round trips in any script, BPE dropout, and broken files."""

import json
import random
import tracemalloc
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tilewright.data import BytePairTokenizer
from tilewright.errors import UserError

CAPTIONS = ["a large red circle", "a small red circle on the left", "a large blue square"] * 10


@pytest.fixture
def tokenizer():
    tokenizer = BytePairTokenizer(vocab_size=300, length=64, dropout=0.5)
    tokenizer.train(CAPTIONS)
    return tokenizer


@pytest.mark.parametrize(
    "caption",
    [
        "A Large RED Circle",
        "naïve café — ÉCOLE",
        "красный круг",
        "赤い丸と青い四角",
        "دائرة حمراء",
        "लाल वृत्त",
        "👩‍🚀 🇳🇱 1️⃣",
        "  two  spaces\tand a tab\nand a line ",
        "'quoted' \"twice\" \\ <|endoftext|> [PAD]",
        "\x00\x7f",
        "",
    ],
)
def test_decoding_restores_any_caption_in_lower_case(tokenizer, caption):
    assert tokenizer.decode(tokenizer.encode([caption])) == [caption.lower()]


def test_tokens_are_padded_with_minus_one(tokenizer):
    tokens = tokenizer.encode(["a large red circle", ""])
    assert tokens.shape == (2, 64)
    assert tokens.dtype == torch.long
    used = int((tokens[0] >= 0).sum())
    assert 0 < used < len("a large red circle")  # merges were learned
    assert (tokens[0, used:] == -1).all()
    assert (tokens[1] == -1).all()
    assert tokens.max() < 300


def test_vocabulary_has_all_bytes_and_at_most_vocab_size_tokens(tokenizer):
    assert 256 < tokenizer._tokenizer.get_vocab_size() <= 300
    with pytest.raises(UserError, match=r"tokenizer\.vocab_size=255 .* of 256 or more"):
        BytePairTokenizer(vocab_size=255)


@pytest.mark.parametrize("setting", [{"length": 0}, {"dropout": 2}, {"dropout": -0.1}])
def test_an_impossible_number_is_refused(setting):
    ((name, number),) = setting.items()
    with pytest.raises(UserError, match=rf"tokenizer\.{name}={number} is not possible"):
        BytePairTokenizer(**setting)


def test_dropout_is_used_on_request_only(tokenizer):
    caption = ["a small red circle on the left"]
    plain = tokenizer.encode(caption)
    segmentations = {tuple(tokenizer.encode(caption, dropout=True)[0].tolist()) for _ in range(20)}
    assert len(segmentations) > 1
    for segmentation in segmentations:  # other tokens, the same caption
        assert tokenizer.decode(torch.tensor([segmentation])) == caption
    assert torch.equal(tokenizer.encode(caption), plain)


def test_dropout_depends_on_the_seed_only(tokenizer):
    def encode(seed):
        torch.manual_seed(seed)
        return tokenizer.encode(CAPTIONS, dropout=True)

    assert torch.equal(encode(1), encode(1))
    assert not torch.equal(encode(1), encode(2))


def test_a_tiny_dropout_gives_the_tokens_without_dropout(tokenizer):
    plain = tokenizer.encode(CAPTIONS)
    tokenizer.dropout = 1e-12
    assert torch.equal(tokenizer.encode(CAPTIONS, dropout=True), plain)


def segmentations(parts, ranks, dropout):
    """Returns the probability of each segmentation, by the definition of BPE dropout.

    Each step skips every possible merge independently, and applies the first remaining one.
    """
    possible = sorted((ranks[p], i) for i, p in enumerate(pairwise(parts)) if p in ranks)
    probabilities = Counter({parts: dropout ** len(possible)})
    for skipped, (_, i) in enumerate(possible):
        merged = (*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :])
        for result, probability in segmentations(merged, ranks, dropout).items():
            probabilities[result] += dropout**skipped * (1 - dropout) * probability
    return probabilities


def test_dropout_matches_its_definition(tokenizer):
    bpe = json.loads(tokenizer._tokenizer.to_str())["model"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(bpe["merges"])}
    tokenizer.dropout = 0.4
    torch.manual_seed(0)
    draws = 5000
    tokens = tokenizer.encode(["circle"] * draws, dropout=True)
    counts = Counter(tuple(row[row >= 0].tolist()) for row in tokens)
    expected = segmentations(tuple("circle"), ranks, 0.4)
    assert len(expected) > 5
    assert sum(expected.values()) == pytest.approx(1)
    for parts, probability in expected.items():
        frequency = counts.pop(tuple(bpe["vocab"][part] for part in parts), 0) / draws
        assert frequency == pytest.approx(probability, abs=0.03), parts
    assert not counts


def test_dropout_needs_little_time_and_memory_for_text_without_spaces(monkeypatch):
    class CountedRandom(random.Random):
        def random(self):
            draws[-1] += 1
            return super().random()

    letters = [chr(0x4E00 + i) for i in range(100)]
    caption = "".join(random.Random(0).choices(letters, k=80))
    tokenizer = BytePairTokenizer(vocab_size=600, length=1024, dropout=0.1)
    tokenizer.train([caption])
    tokenizer.encode(["a"], dropout=True)  # prepares the merges
    monkeypatch.setattr(random, "Random", CountedRandom)
    draws = []
    for length in (80, 320):  # characters, of three bytes each
        draws.append(0)
        tracemalloc.start()
        tokenizer.encode([(4 * caption)[:length]], dropout=True)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1e6, f"{length} characters take {peak / 1e6:.1f} MB"
    assert 2 * draws[0] < draws[1] < 5 * draws[0]


def test_dropout_skips_the_given_share_of_merges(tokenizer):
    tokenizer.train(["ab"])
    tokenizer.dropout = 0.3
    torch.manual_seed(0)
    tokens = tokenizer.encode(["ab"] * 2000, dropout=True)
    assert (tokens[:, 1] >= 0).float().mean().item() == pytest.approx(0.3, abs=0.04)


def test_zero_dropout_gives_the_tokens_without_dropout():
    tokenizer = BytePairTokenizer(vocab_size=300, length=64, dropout=0.0)
    tokenizer.train(CAPTIONS)
    assert torch.equal(
        tokenizer.encode(CAPTIONS, dropout=True), tokenizer.encode(CAPTIONS, dropout=False)
    )


def test_longer_captions_are_truncated_and_counted():
    tokenizer = BytePairTokenizer(vocab_size=256, length=4)
    tokenizer.train(["ab"])
    tokens = tokenizer.encode(["abcd", "abcdefgh", "abcde", "a"])
    assert tokenizer.truncated == 2
    assert tokenizer.decode(tokens) == ["abcd", "abcd", "abcd", "a"]


def test_decoding_ignores_values_that_are_not_tokens(tokenizer):
    tokens = tokenizer.encode(["red"])
    tokens[0, -1] = 10_000
    assert tokenizer.decode(tokens) == ["red"]


def test_a_saved_tokenizer_loads_unchanged(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.encode(CAPTIONS, dropout=True)  # the dropout must not be saved
    tokenizer.save(path)
    loaded = BytePairTokenizer(vocab_size=300, length=64)
    loaded.load(path)
    assert torch.equal(loaded.encode(CAPTIONS), tokenizer.encode(CAPTIONS))
    assert loaded.decode(loaded.encode(["Größe 赤"])) == ["größe 赤"]


def test_hugging_face_tokenizers_open_the_file(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.encode(CAPTIONS, dropout=True)
    tokenizer.save(path)
    theirs = Tokenizer.from_file(str(path))
    ours = tokenizer.encode(["A Large Red circle"])[0]
    for _ in range(5):
        assert theirs.encode("A Large Red circle").ids == ours[ours >= 0].tolist()


def test_training_is_deterministic(tokenizer):
    again = BytePairTokenizer(vocab_size=300, length=64)
    again.train(CAPTIONS)
    assert torch.equal(again.encode(CAPTIONS), tokenizer.encode(CAPTIONS))


@pytest.mark.parametrize("content", [None, "", "{", "{}", '{"version": "1.0", "model": 3}'])
def test_a_broken_file_is_an_error(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as caught:
        BytePairTokenizer().load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_too_large_vocabulary_is_an_error(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    with pytest.raises(UserError, match=r"more than tokenizer.vocab_size=260") as caught:
        BytePairTokenizer(vocab_size=260).load(path)
    assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
def test_captions_are_split_where_the_encoding_ends(caption):
    tokenizer = BytePairTokenizer(vocab_size=256, length=6)
    tokenizer.train(["a"])
    kept, dropped = tokenizer.split_at_length(caption)
    assert kept + dropped == caption
    tokenizer.encode([caption])
    assert bool(dropped) == bool(tokenizer.truncated)
    assert len(kept.encode()) <= 6 or not dropped
