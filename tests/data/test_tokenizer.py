"""Captions to text tokens and back, in any script; what a broken tokenizer file says."""

import json
import random
import re
from itertools import pairwise

import pytest
import torch
from tokenizers import Tokenizer

from tilewright.data import BytePairTokenizer
from tilewright.errors import UserError

CAPTIONS = ["a large red circle", "a small red circle on the left", "a large blue square"] * 10


@pytest.fixture
def tokenizer():
    made = BytePairTokenizer(vocab_size=300, length=64, dropout=0.5)
    made.train(CAPTIONS)
    return made


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
def test_any_caption_comes_back_lowercased(tokenizer, caption):
    assert tokenizer.decode(tokenizer.encode([caption])) == [caption.lower()]


def test_positions_past_the_end_are_minus_one(tokenizer):
    tokens = tokenizer.encode(["a large red circle", ""])
    assert tokens.shape == (2, 64)
    assert tokens.dtype == torch.long
    used = int((tokens[0] >= 0).sum())
    assert 0 < used < len("a large red circle")  # merges were learned
    assert (tokens[0, used:] == -1).all()
    assert (tokens[1] == -1).all()
    assert tokens.max() < 300


def test_no_more_tokens_than_asked_for_and_all_bytes(tokenizer):
    assert 256 < tokenizer._tokenizer.get_vocab_size() <= 300
    with pytest.raises(ValueError, match="256"):
        BytePairTokenizer(vocab_size=255)


def test_dropout_only_when_asked(tokenizer):
    caption = ["a small red circle on the left"]
    plain = tokenizer.encode(caption)
    spellings = {tuple(tokenizer.encode(caption, dropout=True)[0].tolist()) for _ in range(20)}
    assert len(spellings) > 1
    for spelling in spellings:  # other tokens, the same caption
        assert tokenizer.decode(torch.tensor([spelling])) == caption
    assert torch.equal(tokenizer.encode(caption), plain)


def test_dropout_follows_from_the_seed(tokenizer):
    def spell(seed):
        torch.manual_seed(seed)
        return tokenizer.encode(CAPTIONS, dropout=True)

    assert torch.equal(spell(1), spell(1))
    assert not torch.equal(spell(1), spell(2))


def test_a_dropout_of_next_to_nothing_spells_as_without(tokenizer):
    plain = tokenizer.encode(CAPTIONS)
    tokenizer.dropout = 1e-12
    assert torch.equal(tokenizer.encode(CAPTIONS, dropout=True), plain)


def test_dropout_is_that_of_its_definition(tokenizer):
    """Of the pairs that may be merged, each is skipped by a number of its own; the first goes."""
    bpe = json.loads(tokenizer._tokenizer.to_str())["model"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(bpe["merges"])}
    tokenizer.dropout = 0.4
    for seed, caption in enumerate(["a red circle", "blue", "red red red"] * 5):
        torch.manual_seed(seed)
        found = tokenizer.encode([caption], dropout=True)[0]
        torch.manual_seed(seed)
        draw = random.Random(int(torch.randint(2**31, ()))).random
        expected = []
        for word in re.findall(" ?[^ ]+", caption):
            parts = list(word.replace(" ", "Ġ"))
            while True:
                pairs = [(ranks[p], i) for i, p in enumerate(pairwise(parts)) if p in ranks]
                kept = [pair for pair in pairs if draw() >= 0.4]
                if not kept:
                    break
                _, i = min(kept)
                parts[i : i + 2] = [parts[i] + parts[i + 1]]
            expected += [bpe["vocab"][part] for part in parts]
        assert found[found >= 0].tolist() == expected


def test_dropout_skips_merges_at_its_share(tokenizer):
    """Of two letters with one merge, the merge is skipped as often as was said."""
    tokenizer.train(["ab"])
    tokenizer.dropout = 0.3
    torch.manual_seed(0)
    tokens = tokenizer.encode(["ab"] * 2000, dropout=True)
    assert (tokens[:, 1] >= 0).float().mean().item() == pytest.approx(0.3, abs=0.04)


def test_no_dropout_leaves_training_alone():
    tokenizer = BytePairTokenizer(vocab_size=300, length=64, dropout=0.0)
    tokenizer.train(CAPTIONS)
    assert torch.equal(
        tokenizer.encode(CAPTIONS, dropout=True), tokenizer.encode(CAPTIONS, dropout=False)
    )


def test_longer_captions_are_cut_and_counted():
    tokenizer = BytePairTokenizer(vocab_size=256, length=4)
    tokenizer.train(["ab"])
    tokens = tokenizer.encode(["abcd", "abcdefgh", "abcde", "a"])
    assert tokenizer.truncated == 2
    assert tokenizer.decode(tokens) == ["abcd", "abcd", "abcd", "a"]


def test_decode_leaves_out_what_is_no_token(tokenizer):
    tokens = tokenizer.encode(["red"])
    tokens[0, -1] = 10_000
    assert tokenizer.decode(tokens) == ["red"]


def test_saved_and_loaded_is_the_same(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.encode(CAPTIONS, dropout=True)  # a dropout that was saved would come back
    tokenizer.save(path)
    loaded = BytePairTokenizer(vocab_size=300, length=64)
    loaded.load(path)
    assert torch.equal(loaded.encode(CAPTIONS), tokenizer.encode(CAPTIONS))
    assert loaded.decode(loaded.encode(["Größe 赤"])) == ["größe 赤"]


def test_hugging_face_opens_the_file(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.encode(CAPTIONS, dropout=True)
    tokenizer.save(path)
    theirs = Tokenizer.from_file(str(path))
    ours = tokenizer.encode(["A Large Red circle"])[0]
    for _ in range(5):
        assert theirs.encode("A Large Red circle").ids == ours[ours >= 0].tolist()


def test_training_twice_gives_the_same(tokenizer):
    again = BytePairTokenizer(vocab_size=300, length=64)
    again.train(CAPTIONS)
    assert torch.equal(again.encode(CAPTIONS), tokenizer.encode(CAPTIONS))


@pytest.mark.parametrize("content", [None, "", "{", "{}", '{"version": "1.0", "model": 3}'])
def test_broken_file_is_one_line(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as caught:
        BytePairTokenizer().load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_large_vocabulary_is_one_line(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    with pytest.raises(UserError, match=r"more than tokenizer.vocab_size=260") as caught:
        BytePairTokenizer(vocab_size=260).load(path)
    assert "\n" not in str(caught.value)
