"""Batches over a tiny source: their keys, captions, broken pictures, image tokens."""

import logging

import pytest
import torch

from helpers.gray import SIZE, Levels, TinySource, batches, flat, numbers
from tilewright.errors import UserError


def test_dvae_batches(make):
    data = make()
    found = batches(data, data.train_dataloader(), 2)
    for batch in found:
        assert set(batch) == {"image", "caption"}
        assert batch["image"].shape == (4, 3, SIZE, SIZE)
        assert batch["image"].dtype == torch.float32
        levels = (batch["image"][:, 0, 0, 0] * 255).round() / 10
        assert levels.tolist() == numbers(batch)  # each picture with its own caption
    assert sorted(flat(map(numbers, found))) == list(range(8))


def test_prior_batches(make, tokenizer):
    data = make(tokenizer=tokenizer, image_tokenizer=Levels())
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in batches(data, loader, 2):
            assert set(batch) == {"caption", "text_tokens", "image_tokens"}
            assert batch["text_tokens"].shape == (4, 12)
            assert batch["image_tokens"].shape == (4, 2, 2)
            assert batch["image_tokens"].dtype == torch.long
            assert (batch["image_tokens"][:, 0, 0] // 10).tolist() == numbers(batch)
            assert tokenizer.decode(batch["text_tokens"]) == batch["caption"]


def test_captions_are_random_in_training_and_first_in_validation(make):
    data = make()
    trained = [c for batch in batches(data, data.train_dataloader(), 8) for c in batch["caption"]]
    assert {caption.split()[0] for caption in trained} == {"gray"}
    validated = [c for b in data.val_dataloader() for c in b["caption"]]
    assert validated == [f"grey {i}" for i in range(8)]


def test_dropout_in_training_only(make, tokenizer):
    data = make(TinySource(rows=1), tokenizer=tokenizer)

    def spellings(split, training):
        rows = data.rows(split, training)
        return {tuple(rows[0]["text_tokens"].tolist()) for _ in range(20)}

    assert len(spellings("train", True)) > 2  # of two captions
    assert len(spellings("validation", False)) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
def test_broken_picture_is_skipped_counted_and_warned_of_once(make, caplog, stream, tokens):
    data = make(
        TinySource(broken={2, 5}, stream=stream), image_tokenizer=Levels() if tokens else None
    )
    with caplog.at_level(logging.WARNING):
        found = batches(data, data.val_dataloader())
    assert flat(map(numbers, found)) == [0, 1, 3, 4, 6, 7]
    assert all("skipped" not in batch for batch in found)
    assert data.skips.total == 2
    assert len([r for r in caplog.records if "skipped" in r.getMessage()]) == 1
    caplog.clear()
    data.teardown("fit")
    assert "2 of 8 rows were skipped: 2 × not a picture" in caplog.text


def test_batch_of_broken_pictures_takes_the_next_good_one(make):
    data = make(TinySource(broken={0, 1, 2, 3}))
    first, second = batches(data, data.val_dataloader())
    assert numbers(first) == [4]
    assert numbers(second) == [4, 5, 6, 7]
    assert data.skips.total == 4


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
def test_all_broken_is_an_error(make, stream, tokens):
    data = make(
        TinySource(rows=4, broken=range(4), stream=stream),
        image_tokenizer=Levels() if tokens else None,
    )
    with pytest.raises(UserError, match=r"none of the data's rows can be used: .* not a picture"):
        batches(data, data.val_dataloader())
    with pytest.raises(UserError, match="no picture of the split train"):
        data.examples("train", 3)


def test_image_size_of_another_dvae_is_an_error(make):
    with pytest.raises(UserError, match=r"data.image_size=16") as caught:
        make(image_size=32, image_tokenizer=Levels())
    assert "\n" not in str(caught.value)


def test_stream(make, tokenizer):
    data = make(TinySource(stream=True), tokenizer=tokenizer, image_tokenizer=Levels())
    for loader in (data.train_dataloader(), data.val_dataloader()):
        found = batches(data, loader, 2)
        assert sorted(flat(map(numbers, found))) == list(range(8))
        for batch in found:
            assert set(batch) == {"caption", "text_tokens", "image_tokens"}
            assert (batch["image_tokens"][:, 0, 0] // 10).tolist() == numbers(batch)


def test_unknown_split_is_an_error(make):
    with pytest.raises(UserError, match="no split zeroshot; it has train, validation"):
        make().dataloader("zeroshot")


def test_captions_are_all_of_them(make):
    assert list(make(TinySource(rows=2)).captions()) == ["grey 0", "gray 0", "grey 1", "gray 1"]


def test_examples_are_the_first_that_can_be_read(make):
    found = make(TinySource(broken={1})).examples("validation", 3)
    assert [caption for _, caption in found] == ["grey 0", "grey 2", "grey 3"]
    assert found[0][0].shape == (3, SIZE, SIZE)


def test_a_part_of_a_split_goes_by_the_name_that_datasets_gives_it(make):
    data = make(TinySource(broken={1}))
    for part, captions in (
        ("validation[2:4]", ["grey 2", "grey 3"]),
        ("validation[:2]", ["grey 0"]),
        ("validation[6:]", ["grey 6", "grey 7"]),
        ("validation[75%:]", ["grey 6", "grey 7"]),
    ):
        assert [caption for _, caption in data.examples(part, 100)] == captions
    assert data.present(["zeroshot[1:]", "validation[1:]", "train"]) == ["validation[1:]", "train"]


@pytest.mark.parametrize(
    ("part", "stream", "way_out"),
    [
        ("validation[2:4", False, r"validation\[2000:3000\] is one"),
        ("zeroshot[2:4]", False, "no split zeroshot; it has train, validation"),
        ("validation[90:]", False, "the split has 8 rows"),
        ("validation[2:4]", True, "data.source.streaming=false"),
    ],
)
def test_a_part_that_is_none_is_an_error(make, part, stream, way_out):
    with pytest.raises(UserError, match=way_out):
        make(TinySource(stream=stream)).examples(part, 3)


def test_workers_read_the_same(make):
    data = make(TinySource(broken={2}), num_workers=2)
    assert flat(map(numbers, batches(data, data.val_dataloader()))) == [0, 1, 3, 4, 5, 6, 7]
    assert data.skips.total == 1
