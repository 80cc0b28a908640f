"""Tokenizers of other projects: equal ids, truncation, self-contained runs, and broken files."""

import json
import pickle

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from helpers.pretrained import unigram, word_piece
from tilewright.data import PretrainedTokenizer
from tilewright.errors import UserError

TEXTS = ["a red circle", "A gold STAR", "on the left", "unseen ☃ words", ""]


def save(tokenizer, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return str(path)


def make(path, **settings):
    tokenizer = PretrainedTokenizer(path, **settings)
    tokenizer.train()
    return tokenizer


def ids(row):
    return row[row >= 0].tolist()


@pytest.fixture
def t5(tmp_path):
    return save(unigram(), tmp_path / "t5.json")


@pytest.mark.parametrize("library", [unigram, word_piece])
def test_tokens_are_those_of_the_file_with_its_special_tokens(library, tmp_path):
    reference = library()
    tokens = make(save(reference, tmp_path / "tokenizer.json"), length=32).encode(TEXTS)
    assert tokens.shape == (5, 32)
    assert [ids(row) for row in tokens] == [reference.encode(text).ids for text in TEXTS]


def test_the_file_decides_the_size_of_the_vocabulary(t5):
    assert make(t5).vocab_size == unigram().get_vocab_size()
    assert make(t5, vocab_size=1000).vocab_size == 1000
    with pytest.raises(UserError, match=r"more than tokenizer\.vocab_size=20: set"):
        make(t5, vocab_size=20)


def test_long_captions_keep_their_end_token_and_are_counted(t5):
    tokenizer = make(t5, length=6)
    tokens = tokenizer.encode(["a red circle on the left", "a"])
    expected = unigram()
    expected.enable_truncation(6)
    assert ids(tokens[0]) == expected.encode("a red circle on the left").ids
    assert tokens[0, -1] == expected.token_to_id("</s>")
    assert tokenizer.truncated == 1


@pytest.mark.parametrize("caption", ["A Large red circle", "two  ☃ stars on the left", "a", ""])
def test_a_caption_is_split_where_its_tokens_end(tmp_path, caption):
    tokenizer = make(save(word_piece(), tmp_path / "tokenizer.json"), length=6)
    kept, dropped = tokenizer.split_at_length(caption)
    assert kept + dropped == caption
    assert torch.equal(tokenizer.encode([kept]), tokenizer.encode([caption]))
    tokenizer.truncated = 0
    tokenizer.encode([caption])
    assert tokenizer.truncated == bool(dropped)


def test_a_saved_tokenizer_does_not_need_its_source(t5, tmp_path):
    original = make(t5, length=6)
    original.save(tmp_path / "run.json")
    assert json.loads((tmp_path / "run.json").read_text())["truncation"] is None
    loaded = PretrainedTokenizer("/gone", length=6, vocab_size=original.vocab_size)
    loaded.load(tmp_path / "run.json")
    for tokenizer in (original, loaded, pickle.loads(pickle.dumps(loaded))):
        tokens = tokenizer.encode(["a red circle on the left", "a ring"])
        assert torch.equal(tokens, original.encode(["a red circle on the left", "a ring"]))


def test_options_of_the_file_for_padding_and_truncation_do_not_count(tmp_path):
    tokenizer = unigram()
    tokenizer.enable_padding(length=20, pad_id=0)
    tokenizer.enable_truncation(3)
    tokens = make(save(tokenizer, tmp_path / "tokenizer.json"), length=32).encode(["a red circle"])
    assert ids(tokens[0]) == unigram().encode("a red circle").ids


def test_byte_pairs_of_letters_in_lower_case_with_unknown_and_padding_tokens(tmp_path):
    # The BPE of minDALL-E: words end with </w>, and [PAD] and [UNK] are tokens of their own.
    vocab = ["[PAD]", "[UNK]", *"abcdert", *(f"{c}</w>" for c in "abcdert"), "re", "red</w>"]
    model = models.BPE(
        {token: index for index, token in enumerate(vocab)},
        [("r", "e"), ("re", "d</w>")],
        unk_token="[UNK]",
        end_of_word_suffix="</w>",
    )
    reference = Tokenizer(model)
    reference.normalizer = normalizers.Lowercase()
    reference.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    reference.decoder = decoders.BPEDecoder(suffix="</w>")
    tokenizer = make(save(reference, tmp_path / "tokenizer.json"), length=5)
    tokens = tokenizer.encode(["A RED z", "", "red red red red red red"])
    names = [[vocab[i] if i >= 0 else "" for i in row] for row in tokens.tolist()]
    assert names[0] == ["a</w>", "red</w>", "[UNK]", "", ""]
    assert names[1] == [""] * 5
    assert tokenizer.decode(tokens)[0].startswith("a red")
    assert tokenizer.split_at_length("RED red red red red Red") == ("RED red red red red ", "Red")


def test_captions_are_cleaned_first(t5):
    tokenizer = make(t5, length=6, cleaning="llamagen")
    assert torch.equal(tokenizer.encode(["<b>A RED</b>"]), make(t5, length=6).encode(["a red"]))
    kept, dropped = tokenizer.split_at_length("<b>A RED</b> circle on the left")
    assert kept + dropped == "a red circle on the left"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 1}, "tokenizer.length=1 leaves no position .* 1 special tokens"),
        ({"length": 0}, "tokenizer.length=0 is not possible"),
        ({"vocab_size": 0}, "tokenizer.vocab_size=0 is not possible"),
        ({"cleaning": "clip"}, "cleaning=clip is not possible"),
    ],
)
def test_an_impossible_setting_is_one_line(t5, settings, message):
    with pytest.raises(UserError, match=message):
        make(t5, **settings)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff\xfe", b'{"model": {"type": "BPE"}}', b"spiece\x00\x01"]
)
def test_a_broken_file_is_one_line(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as a tokenizer") as error:
        make(str(tmp_path / "tokenizer.json"))
    assert "\n" not in str(error.value)


def test_a_missing_path_is_one_line(tmp_path):
    for path in (str(tmp_path / "none"), str(tmp_path / "none.json"), "no/such/name"):
        with pytest.raises(UserError, match="is not a tokenizer that can be read") as error:
            make(path)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="names no tokenizer"):
        make(None)


class TestTransformers:
    """Tokenizers of transformers, whose import takes seconds."""

    @pytest.mark.parametrize(
        ("library", "kind"), [(unigram, "T5Tokenizer"), (word_piece, "BertTokenizer")]
    )
    def test_ids_equal_those_of_transformers(self, library, kind, tmp_path):
        from transformers import AutoTokenizer

        save(library(), tmp_path / "tokenizer.json")
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
        reference = AutoTokenizer.from_pretrained(tmp_path)
        tokens = make(str(tmp_path), length=8).encode(TEXTS)
        expected = reference(TEXTS, truncation=True, max_length=8).input_ids
        assert [ids(row) for row in tokens] == expected

    def test_a_tokenizer_of_sentencepiece_is_converted(self, tmp_path):
        import sentencepiece
        from transformers import AutoTokenizer

        (tmp_path / "text.txt").write_text("a red circle\na blue ring\ntwo large stars\n" * 20)
        sentencepiece.SentencePieceTrainer.train(
            input=str(tmp_path / "text.txt"),
            model_prefix=str(tmp_path / "spiece"),
            vocab_size=22,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
        reference = AutoTokenizer.from_pretrained(tmp_path)
        tokenizer = make(str(tmp_path), length=16)
        pieces = sentencepiece.SentencePieceProcessor(str(tmp_path / "spiece.model"))
        for text in ("a red circle", "two blue rings"):
            tokens = ids(tokenizer.encode([text])[0])
            assert tokens == reference(text).input_ids == [*pieces.encode(text), 1]
        tokenizer.save(tmp_path / "run.json")
        assert make(str(tmp_path / "run.json"), length=16).encode(["a ring"]).tolist() == (
            tokenizer.encode(["a ring"]).tolist()
        )

    def test_a_tokenizer_without_a_fast_version_is_refused_in_one_line(self, tmp_path):
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
        with pytest.raises(UserError, match="ByT5Tokenizer, which cannot be converted") as error:
            make(str(tmp_path))
        assert "\n" not in str(error.value)

    def test_code_of_a_folder_is_not_run(self, tmp_path):
        ran = tmp_path / "ran"
        (tmp_path / "mine.py").write_text(f"open({str(ran)!r}, 'w')")
        config = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match="is not a tokenizer that can be read"):
            make(str(tmp_path))
        assert not ran.exists()
