"""Cache of caption features: distinct captions, several processes, and batches of the data."""

import multiprocessing
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.gray import TinySource, batches
from helpers.open_files import limited_open_files
from helpers.pretrained import save_t5
from tilewright.data import CaptionedImages, CaptionEncoder, CenterCrop, feature_cache, shards
from tilewright.data.feature_cache import FeatureCache, encode_captions
from tilewright.errors import UserError

CAPTIONS = [f"a {color} {shape}" for color in ("red", "blue") for shape in ("ring", "star", "line")]


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return str(save_t5(tmp_path_factory.mktemp("t5")))


@pytest.fixture
def encoder(t5):
    return CaptionEncoder(t5, 16, dtype="float32")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(feature_cache, "SHARD", 4)


@pytest.fixture
def count(encoder, monkeypatch):
    """Numbers of captions in the passes through the encoder."""
    counts = []
    real = encoder.hidden_states

    def hidden_states(tokens):
        counts.append(len(tokens))
        return real(tokens)

    monkeypatch.setattr(encoder, "hidden_states", hidden_states)
    return counts


def encode(encoder, folder, captions=CAPTIONS):
    return encode_captions([captions[:3], captions[3:]], encoder, folder, None)


def check(cache, encoder, captions=CAPTIONS):
    tokens = encoder.tokenizer.encode(captions)
    expected = encoder.hidden_states(tokens)
    for row, states in zip(tokens, expected, strict=True):
        stored = cache[row]
        assert stored.dtype == encoder.dtype
        torch.testing.assert_close(stored, states[: len(stored)], atol=1e-5, rtol=1e-5)
        assert len(stored) == (row >= 0).sum()


def test_captions_whose_hash_ends_in_zero_are_found(tmp_path):
    """They are one in 256."""
    captions = np.arange(2000, dtype=np.int32).reshape(1000, 2)
    tokenizer = SimpleNamespace(truncated=0, encode=torch.tensor)
    feature_cache._write_index([captions], tokenizer, tmp_path / "index")
    index = feature_cache.CaptionIndex(tmp_path / "index")
    entries = {index.find(torch.from_numpy(caption)) for caption in captions}
    assert entries == set(range(1000))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_each_distinct_caption_is_encoded_once(t5, tmp_path, dtype):
    encoder = CaptionEncoder(t5, 16, dtype=dtype)
    cache = encode(encoder, tmp_path / "cache", [*CAPTIONS, *CAPTIONS, ""])
    assert len(cache) == 7
    if dtype == "float32":
        check(cache, encoder, [*CAPTIONS, ""])
    assert sorted(file.name for file in (tmp_path / "cache").glob("*.npy")) == [
        "00000.npy",
        "00001.npy",
    ]
    assert encoder.truncated == 0


def test_features_in_bfloat16_are_stored_as_they_are(t5, tmp_path):
    encoder = CaptionEncoder(t5, 16, dtype="bfloat16")
    cache = encode(encoder, tmp_path / "cache")
    tokens = encoder.tokenizer.encode(CAPTIONS[:1])
    stored = cache[tokens[0]]
    assert stored.dtype == torch.bfloat16
    states = encoder.hidden_states(tokens)[0]
    torch.testing.assert_close(stored, states, atol=0.02, rtol=0.02)


def test_complete_shards_are_kept_when_the_encoding_is_interrupted(
    encoder, tmp_path, count, monkeypatch
):
    real = encoder.hidden_states

    def fail_later(tokens):
        if len(count) == 1:
            raise KeyboardInterrupt
        return real(tokens)

    monkeypatch.setattr(encoder, "hidden_states", fail_later)
    with pytest.raises(KeyboardInterrupt):
        encode(encoder, tmp_path / "cache")
    monkeypatch.setattr(encoder, "hidden_states", real)
    cache = encode(encoder, tmp_path / "cache")
    assert count == [4, 2]  # the first shard is not encoded again
    check(cache, encoder)
    count.clear()
    encode(encoder, tmp_path / "cache")
    assert count == []


def test_two_processes_share_the_work(encoder, tmp_path):
    captions = [f"a {'red ' * (i % 5)}{'blue ' * (i // 5)}ring" for i in range(25)]
    encoder._load()
    context = multiprocessing.get_context("fork")
    helper = context.Process(target=encode, args=(encoder, tmp_path / "cache", captions))
    helper.start()
    cache = encode(encoder, tmp_path / "cache", captions)
    helper.join()
    assert helper.exitcode == 0
    assert len(cache) == 25
    check(cache, encoder, captions)


def test_a_broken_or_foreign_shard_is_one_line(encoder, tmp_path):
    encode(encoder, tmp_path / "cache")
    first, second = sorted((tmp_path / "cache").glob("*.npy"))
    tokens = encoder.tokenizer.encode(CAPTIONS)
    first.write_bytes(second.read_bytes())
    second.write_bytes(b"broken")
    messages = set()
    for row in tokens:
        with pytest.raises(UserError, match="delete it to encode it again") as error:
            FeatureCache(tmp_path / "cache")[row]
        messages.add(str(error.value))
    assert len(messages) == 2


def test_a_caption_that_the_cache_lacks_is_one_line(encoder, tmp_path):
    cache = encode(encoder, tmp_path / "cache")
    (tokens,) = encoder.tokenizer.encode(["two gold lines"])
    with pytest.raises(UserError, match=r"lacks a caption of the data: delete .*cache to encode"):
        cache[tokens]


def test_a_cache_may_have_more_shards_than_a_process_may_open_files(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "SHARD", 1)
    captions = [f"{'a ' * (n % 15)}{'red ' * (n // 15)}" for n in range(shards.OPEN_SHARDS + 40)]
    encoder = CaptionEncoder(encoder.path, 64, dtype="float32")
    cache = encode(encoder, tmp_path / "cache", captions)
    assert len(cache) == len(captions)
    with limited_open_files(shards.OPEN_SHARDS + 20):
        check(cache, encoder, captions)


class TestData:
    """Batches of `CaptionedImages` with a caption encoder."""

    @pytest.fixture
    def make(self, encoder, tmp_path):
        def make(source=None, **settings):
            return CaptionedImages(
                source or TinySource(),
                image_size=16,
                batch_size=4,
                train_transform=None,
                eval_transform=CenterCrop(16),
                tokenizer=encoder,
                cache=tmp_path / "cache",
                **settings,
            )

        return make

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_batch_has_the_features_of_its_captions(self, make, encoder, streaming, workers):
        data = make(TinySource(streaming=streaming), num_workers=workers)
        for training in (False, True):
            seen = set()
            for batch in batches(data, data.dataloader("train", training), 2):
                expected = encoder.encode(batch["caption"])
                torch.testing.assert_close(batch["text"], expected, atol=1e-5, rtol=1e-5)
                assert "features" not in batch
                seen.update(caption.split()[0] for caption in batch["caption"])
            assert seen == ({"plain", "gray"} if training else {"plain"})

    def test_features_come_from_the_cache(self, make, count):
        data = make()
        loader = data.dataloader("train", True)
        assert count == [2]  # "plain 1" and "plain 2" have equal tokens, as digits are unknown
        count.clear()
        batches(data, loader, 4)
        again = make()
        batches(again, again.dataloader("train", True), 2)
        assert count == []

    def test_each_streamed_batch_is_encoded(self, make, count):
        data = make(TinySource(streaming=True))
        batches(data, data.dataloader("train", True), 2)
        assert count == [4, 4]

    def test_other_captions_or_settings_have_another_cache(self, make, encoder, tmp_path):
        caches = {make(TinySource(rows=rows)).encode_captions("train").folder for rows in (4, 5)}
        encoder._digest = "other"
        caches.add(make(TinySource(rows=4)).encode_captions("train").folder)
        assert len(caches) == 3
        assert all(folder.parent == tmp_path / "cache" / "captions" for folder in caches)
