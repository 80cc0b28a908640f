"""Image tokens that are encoded ahead: once, of several views, anew when a picture changes."""

import pytest
from datasets import Dataset
from PIL import Image as PILImage

from helpers.gray import SIZE, Levels, Noise, batches, numbers
from tilewright.data.sources import ParquetSource
from tilewright.data.sources.folder import FolderSource


def test_tokens_are_encoded_once(make):
    tokenizer = Levels()
    data = make(image_tokenizer=tokenizer)
    for _ in range(2):
        batches(data, data.train_dataloader(), 2)
    assert tokenizer.encoded == 8
    again = Levels()  # the same weights in another process
    batches(data, make(image_tokenizer=again).train_dataloader(), 2)
    assert again.encoded == 0
    other = Levels()
    other.weight.data += 1
    batches(data, make(image_tokenizer=other).train_dataloader(), 2)
    assert other.encoded == 8


@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_a_picture_that_is_exchanged_is_encoded_again(make, form, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    files = [tmp_path / "pictures" / f"{level}.png" for level in range(8)]
    files[0].parent.mkdir()
    for level, file in enumerate(files):
        PILImage.new("L", (SIZE, SIZE), level).save(file)
        file.with_suffix(".txt").write_text(f"grey {level}")
    source = FolderSource(str(files[0].parent), validation_fraction=0.3)
    if form == "parquet":
        rows = {"image": [file.name for file in files], "caption": ["gray"] * len(files)}
        Dataset.from_dict(rows).to_parquet(files[0].parent / "a.parquet")
        source = ParquetSource(str(files[0].parent), validation_fraction=0.3)

    def tokens():
        data = make(source, image_tokenizer=Levels())
        splits = [data.encode(split, quiet=True)[0] for split in ("train", "validation")]
        return sorted(int(row[0, 0]) for codes in splits for row in codes)

    assert tokens() == list(range(8))
    made = len(list((tmp_path / "codes").iterdir()))
    assert tokens() == list(range(8))
    assert len(list((tmp_path / "codes").iterdir())) == made  # they were there
    PILImage.new("L", (SIZE, SIZE), 200).save(files[3])
    assert tokens() == [0, 1, 2, 4, 5, 6, 7, 200]


def test_augmented_tokens_are_encoded_at_every_step(make):
    tokenizer = Levels()
    data = make(image_tokenizer=tokenizer, augmented_tokens=True)
    for _ in range(2):
        for batch in batches(data, data.train_dataloader(), 2):
            assert set(batch) == {"caption", "image_tokens"}
            assert (batch["image_tokens"][:, 0, 0] // 10).tolist() == numbers(batch)
    assert tokenizer.encoded == 16
    batches(data, data.val_dataloader())
    batches(data, data.val_dataloader())
    assert tokenizer.encoded == 24  # validation's come from disk


class Speckles(Levels):
    """An image tokenizer that shows which crop it was given: the levels of its first pixels."""

    def encode(self, images):
        self.encoded += len(images)
        return (images[:, 0, :2, :2] * 255).round().long()


def test_views_are_encoded_once_and_taken_by_turns(make):
    def train(tokenizer, epochs=1, **settings):
        data = make(image_tokenizer=tokenizer, train_transform=Noise(), views=3, **settings)
        seen = [{} for _ in range(epochs)]
        loader = data.train_dataloader()
        for number, batch in enumerate(batches(data, loader, 2 * epochs)):
            for row, tokens in zip(numbers(batch), batch["image_tokens"], strict=True):
                seen[number // 2][row] = tuple(tokens.flatten().tolist())
        return seen

    tokenizer = Speckles()
    seen = train(tokenizer, epochs=6)
    assert tokenizer.encoded == 3 * 8
    for row in range(8):
        views = [epoch[row] for epoch in seen]
        assert views[:3] == views[3:]  # by turns
        assert len(set(views[:3])) == 3  # each crop is another
    again = Speckles()
    assert train(again, epochs=6) == seen
    assert again.encoded == 0
    assert train(Speckles(), epochs=6, seed=1) != seen


def test_views_are_of_training_only(make):
    tokenizer = Levels()
    data = make(image_tokenizer=tokenizer, train_transform=Noise(), views=2)
    for batch in batches(data, data.val_dataloader()):
        assert (batch["image_tokens"][:, 0, 0] // 10).tolist() == numbers(batch)
    assert tokenizer.encoded == 8
