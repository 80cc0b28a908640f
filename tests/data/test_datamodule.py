"""Batches of a tiny source: keys, captions, broken images, image tokens."""

import logging
from itertools import islice

import pytest
import torch

from helpers.gray import SIZE, Levels, TinySource, batches, flatten, row_indices
from helpers.numbered_images import write_folder
from tilewright.data import image_tokenizer
from tilewright.data.sources import FolderSource
from tilewright.errors import UserError


def test_dvae_batches_have_images(make):
    data = make()
    trained = batches(data, data.train_dataloader(), 2)
    for batch in trained:
        assert set(batch) == {"rows", "image", "caption"}
        assert batch["image"].shape == (4, 3, SIZE, SIZE)
        assert batch["image"].dtype == torch.float32
        levels = (batch["image"][:, 0, 0, 0] * 255).round() / 10
        assert levels.tolist() == row_indices(batch)  # each image has its own caption
    assert sorted(flatten(map(row_indices, trained))) == list(range(8))


@pytest.mark.parametrize(("size", "warned"), [(8, False), (9, True)])
def test_a_batch_larger_than_the_training_split_is_a_warning(make, caplog, size, warned):
    make(batch_size=size).train_dataloader()
    assert (f"batch_size={size} is more than the 8 rows" in caplog.text) == warned


def test_prior_batches_have_text_and_image_tokens(make, tokenizer):
    data = make(tokenizer=tokenizer, image_tokenizer=Levels())
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in batches(data, loader, 2):
            assert set(batch) == {"rows", "caption", "text", "image_tokens"}
            assert batch["text"].shape == (4, 12)
            assert batch["image_tokens"].shape == (4, 2, 2)
            assert batch["image_tokens"].dtype == torch.long
            assert (batch["image_tokens"][:, 0, 0] // 10).tolist() == row_indices(batch)
            assert tokenizer.decode(batch["text"]) == batch["caption"]


def test_a_large_batch_is_encoded_in_parts_that_fit_the_memory(make, monkeypatch):
    monkeypatch.setattr(image_tokenizer, "BATCH_PIXELS", 3 * SIZE**2)
    tokenizer, sizes = Levels(), []
    encode = tokenizer.encode
    monkeypatch.setattr(
        tokenizer, "encode", lambda images: sizes.append(len(images)) or encode(images)
    )
    data = make(image_tokenizer=tokenizer, augmented_tokens=True)
    (batch,) = batches(data, data.train_dataloader(), 1)
    assert (batch["image_tokens"][:, 0, 0] // 10).tolist() == row_indices(batch)
    assert sizes == [3, 1]


def test_training_uses_random_captions_and_validation_the_first(make):
    data = make()
    trained = [c for batch in batches(data, data.train_dataloader(), 8) for c in batch["caption"]]
    assert {caption.split()[0] for caption in trained} == {"plain", "gray"}
    validated = [c for b in data.val_dataloader() for c in b["caption"]]
    assert sorted(validated) == [f"plain {i}" for i in range(8)]


def test_bpe_dropout_is_used_in_training_only(make, tokenizer):
    data = make(TinySource(rows=1), tokenizer=tokenizer)

    def segmentations(split, training):
        dataset = data.dataset(split, training)
        return {tuple(dataset[0]["text"].tolist()) for _ in range(20)}

    assert len(segmentations("train", True)) > 2  # more than the two captions
    assert len(segmentations("validation", False)) == 1


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
def test_broken_images_are_skipped_and_counted_with_one_warning(make, caplog, streaming, tokens):
    data = make(
        TinySource(broken={2, 5}, streaming=streaming), image_tokenizer=Levels() if tokens else None
    )
    with caplog.at_level(logging.WARNING):
        validated = batches(data, data.val_dataloader())
    assert sorted(flatten(map(row_indices, validated))) == [0, 1, 3, 4, 6, 7]
    assert all("skipped" not in batch for batch in validated)
    assert data.skip_counts.total == 2
    assert len([r for r in caplog.records if "skipped" in r.getMessage()]) == 1
    caplog.clear()
    data.teardown("fit")
    assert "2 of 8 rows read were skipped (each epoch counts again): 2 × not an" in caplog.text


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_skipped_images_are_named(make, tmp_path, caplog, tokens, workers):
    train = tmp_path / "train"
    write_folder(train, range(4))
    write_folder(tmp_path / "validation", range(4, 6))
    (train / "2.png").write_bytes(b"not an image")
    (train / "3.png").unlink()
    (train / "3.png").symlink_to("missing.png")
    data = make(
        FolderSource(str(tmp_path)),
        image_tokenizer=Levels() if tokens else None,
        num_workers=workers,
    )
    batches(data, data.train_dataloader(), 1)
    data.teardown("fit")
    for message in caplog.messages:
        assert f"1 × not an image (such as {train / '2.png'})" in message
        assert f"1 × image file is missing (such as {train / '3.png'})" in message
    assert len(caplog.messages) == 2  # the first batch and the end


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_truncated_captions_are_counted_with_an_example(
    make, tokenizer, caplog, streaming, workers
):
    tokenizer.length = 1  # each caption has two words
    data = make(TinySource(streaming=streaming), tokenizer=tokenizer, num_workers=workers)
    trained = batches(data, data.train_dataloader(), 2)
    assert all("truncated" not in batch for batch in trained)
    (first,) = (record.getMessage() for record in caplog.records)
    assert first.startswith("Some captions are longer than 1 text tokens and are truncated")
    caplog.clear()
    data.teardown("fit")
    assert "8 captions were longer than 1 text tokens" in caplog.text
    resumed = make(tokenizer=tokenizer)
    resumed.load_state_dict(data.state_dict())
    assert resumed.skip_counts.truncated == 8


def test_batch_of_broken_images_repeats_the_next_usable_row_without_counting_it(make):
    order = flatten(map(row_indices, make().val_dataloader()))
    data = make(TinySource(broken=order[:4]))
    first, second = batches(data, data.val_dataloader())
    assert (row_indices(first), first["rows"]) == (order[4:5], 0)
    assert (row_indices(second), second["rows"]) == (order[4:], 4)
    assert data.skip_counts.total == 4


@pytest.mark.parametrize("tokens", [False, True])
def test_rows_without_an_image_are_skipped(make, tokens):
    data = make(TinySource(missing={2, 5}), image_tokenizer=Levels() if tokens else None)
    validated = batches(data, data.val_dataloader())
    assert sorted(flatten(map(row_indices, validated))) == [0, 1, 3, 4, 6, 7]
    assert data.skip_counts.reasons == {"no image": 2}


@pytest.mark.parametrize("crops", [0, 1, 3])
def test_the_row_that_replaces_a_batch_of_broken_images_has_its_own_tokens(make, crops):
    data = make(
        TinySource(broken={1, 2, 5}),
        batch_size=1,
        image_tokenizer=Levels(),
        train_transform=None,
        crops_per_image=crops,
    )
    trained = batches(data, data.train_dataloader(), 8)
    assert sum(batch["rows"] for batch in trained) == 5
    for batch in trained:
        assert (batch["image_tokens"][:, 0, 0] // 10).tolist() == row_indices(batch)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("tokens", [False, True])
def test_data_without_a_usable_row_is_an_error(make, streaming, tokens):
    data = make(
        TinySource(rows=4, broken=range(4), streaming=streaming),
        image_tokenizer=Levels() if tokens else None,
    )
    with pytest.raises(UserError, match=r"no row of the data can be used \(.* not an image"):
        batches(data, data.val_dataloader())
    with pytest.raises(UserError, match="no image of the split train"):
        data.examples("train", 3)


def test_image_size_that_differs_from_the_dvae_is_an_error(make):
    with pytest.raises(UserError, match=r"data.image_size=16, .* with dvae=PATH$") as caught:
        make(image_size=32, image_tokenizer=Levels())
    assert "\n" not in str(caught.value)


def test_streaming_batches_match_those_of_tables(make, tokenizer):
    data = make(TinySource(streaming=True), tokenizer=tokenizer, image_tokenizer=Levels())
    for loader in (data.train_dataloader(), data.val_dataloader()):
        both = batches(data, loader, 2)
        assert sorted(flatten(map(row_indices, both))) == list(range(8))
        for batch in both:
            assert set(batch) == {"rows", "caption", "text", "image_tokens"}
            assert (batch["image_tokens"][:, 0, 0] // 10).tolist() == row_indices(batch)


def test_unknown_split_is_an_error(make):
    with pytest.raises(
        UserError, match="no split zeroshot: set the key split to one of train, validation"
    ):
        make().dataloader("zeroshot")


def test_captions_include_all_captions_of_an_image(make):
    captions = ["gray 0", "gray 1", "plain 0", "plain 1"]
    assert sorted(make(TinySource(rows=2)).captions()) == captions


def first_indices(data, count):
    """Row indices of the first examples, of the first captions and of the first batches."""
    loader = data.val_dataloader()
    return (
        [int(caption.split()[1]) for _, caption in data.examples("validation", count)],
        [int(caption.split()[1]) for caption in islice(data.captions("validation"), 0, None, 2)],
        flatten(map(row_indices, loader)),
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_examples_captions_and_batches_are_in_one_order_for_every_seed(make, streaming):
    source = TinySource(broken={1}, streaming=streaming)
    examples, captions, read = first_indices(make(source), 3)
    assert read[:3] == examples
    assert [index for index in captions if index != 1] == read
    assert sorted(read) == [0, 2, 3, 4, 5, 6, 7] != read
    assert first_indices(make(source, seed=5), 3) == (examples, captions, read)


def test_examples_are_images_of_the_final_size(make):
    assert make().examples("validation", 1)[0][0].shape == (3, SIZE, SIZE)


def test_a_slice_of_a_split_uses_the_syntax_of_datasets(make):
    data = make()
    captions = [caption for _, caption in data.examples("validation", 100)]
    for part, expected in (
        ("validation[2:4]", captions[2:4]),
        ("validation[:2]", captions[:2]),
        ("validation[6:]", captions[6:]),
        ("validation[75%:]", captions[6:]),
    ):
        assert [caption for _, caption in data.examples(part, 100)] == expected


@pytest.mark.parametrize(
    ("name", "streaming", "message"),
    [
        ("validation[2:4", False, r"is not a valid slice: write it like validation\[2000:3000\]"),
        (
            "zeroshot[2:4]",
            False,
            "no split zeroshot.*: set the key split to one of train, validation",
        ),
        ("validation[90:]", False, "the split has 8 rows"),
        ("validation[2:4]", True, "data.source.streaming=false"),
    ],
)
def test_invalid_slices_are_errors(make, name, streaming, message):
    with pytest.raises(UserError, match=message):
        make(TinySource(streaming=streaming)).examples(name, 3)


def test_workers_read_the_same_rows(make):
    data = make(TinySource(broken={2}), num_workers=2)
    alone = make(TinySource(broken={2}))
    expected = batches(alone, alone.val_dataloader())
    assert list(map(row_indices, batches(data, data.val_dataloader()))) == list(
        map(row_indices, expected)
    )
    assert data.skip_counts.total == 1
