"""Image tokens that are encoded once, per crop, and again when an image file changes."""

import errno
import inspect
import io
import os
from dataclasses import dataclass

import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage

from helpers.gray import SIZE, Levels, Noise, TinySource, batches, row_indices
from tilewright.data import images
from tilewright.data.fingerprints import fingerprint_files
from tilewright.data.sources import ParquetSource
from tilewright.data.sources.folder import FolderSource
from tilewright.data.transforms import StageOneCrop, StageTwoCrop
from tilewright.errors import UserError


def test_tokens_are_encoded_once(make):
    tokenizer = Levels()
    data = make(image_tokenizer=tokenizer)
    for _ in range(2):
        batches(data, data.train_dataloader(), 2)
    assert tokenizer.encoded == 8
    same = Levels()  # the same weights, as in another process
    batches(data, make(image_tokenizer=same).train_dataloader(), 2)
    assert same.encoded == 0
    other = Levels()
    other.weight.data += 1
    batches(data, make(image_tokenizer=other).train_dataloader(), 2)
    assert other.encoded == 8


class FirstPixel(torch.nn.Module):
    """Image tokenizer without weights."""

    image_size, grid, num_tokens = SIZE, 1, 256

    def encode(self, images):
        return (images[:, :1, :1, 0] * 255).round().long()


class Inverted(FirstPixel):
    def encode(self, images):
        return 255 - super().encode(images)


def test_image_tokenizers_without_weights_have_separate_tokens(make):
    for image_tokenizer, first, direction in ((FirstPixel(), 0, 1), (Inverted(), 255, -1)):
        data = make(image_tokenizer=image_tokenizer)
        (batch,) = batches(data, data.train_dataloader(), 1)
        expected = [first + direction * 10 * row for row in row_indices(batch)]
        assert batch["image_tokens"].flatten().tolist() == expected


def replace_image(file, size, level):
    """Replaces an image by one of the same file size, and keeps the modification time."""
    before = file.stat()
    PILImage.new("L", size, level).save(file)
    with file.open("ab") as end:
        end.write(bytes(before.st_size - file.stat().st_size))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size


@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_a_changed_image_file_is_encoded_again(make, form, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    files = [tmp_path / "images" / f"{level}.png" for level in range(8)]
    files[0].parent.mkdir()
    for level, file in enumerate(files):
        PILImage.new("L", (SIZE, SIZE), level).save(file)
        file.with_suffix(".txt").write_text(f"plain {level}")
    source = FolderSource(str(files[0].parent), validation_fraction=0.3)
    if form == "parquet":
        rows = {"image": [file.name for file in files], "caption": ["gray"] * len(files)}
        Dataset.from_dict(rows).to_parquet(files[0].parent / "a.parquet")
        source = ParquetSource(str(files[0].parent), validation_fraction=0.3)

    def tokens():
        data = make(source, image_tokenizer=Levels())
        splits = [data.encode(split, quiet=True)[0] for split in ("train", "validation")]
        return sorted(int(row[0, 0]) for cache in splits for row in cache)

    assert tokens() == list(range(8))
    folders = len(list((tmp_path / "image_tokens").iterdir()))
    assert tokens() == list(range(8))
    assert len(list((tmp_path / "image_tokens").iterdir())) == folders  # nothing was encoded
    replace_image(files[3], (SIZE, SIZE), 200)
    assert tokens() == [0, 1, 2, 4, 5, 6, 7, 200]


def test_an_image_file_after_a_thousand_embedded_images_counts(tmp_path):
    file = tmp_path / "last.png"
    PILImage.new("L", (SIZE, SIZE), 70).save(file)
    embedded, separate = {"bytes": b"1", "path": "1.png"}, {"bytes": None, "path": str(file)}

    def fingerprint(*records):
        features = Features({"image": Image(decode=False)})
        return fingerprint_files(
            Dataset.from_dict({"image": [embedded] * 1000 + [*records]}, features)
        )

    before = fingerprint(separate)
    assert fingerprint(None) == ""
    replace_image(file, (SIZE, SIZE), 71)
    assert fingerprint(separate) != before != ""


def test_a_disk_that_fails_for_a_while_costs_no_image(make, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    for level in range(4):
        PILImage.new("L", (SIZE, SIZE), level).save(folder / f"{level}.png")
        (folder / f"{level}.txt").write_text(f"plain {level}")

    def unreadable():
        source = FolderSource(str(folder), validation_fraction=0.5)
        (cache,) = make(source, image_tokenizer=Levels()).encode("train")
        return sum(map(len, cache.unreadable().values()))

    def fail(path):
        raise OSError(errno.EIO, "Input/output error", path)

    with monkeypatch.context() as patch:
        patch.setattr(images, "_open_path", fail)
        assert unreadable()
    assert not unreadable()


class Plain:
    """Transform without a repr."""

    def __init__(self, level):
        self.level = level

    def __call__(self, image):
        return PILImage.new("RGB", image.size, (self.level,) * 3)


def test_tokens_of_a_transform_without_a_repr_depend_on_its_attributes(make):
    def encoded(level):
        tokenizer = Levels()
        data = make(image_tokenizer=tokenizer, eval_transform=Plain(level))
        data.encode("train", quiet=True)
        return tokenizer.encoded

    assert [encoded(level) for level in (3, 3, 4)] == [8, 0, 8]


def test_heic_images_are_encoded_once_pillow_heif_is_installed(make, monkeypatch):
    file = io.BytesIO()
    PILImage.new("RGB", (64, 64), (200, 200, 200)).save(file, "HEIF")

    class Source(TinySource):
        def load(self):
            rows = Dataset.from_list([{"image": {"bytes": file.getvalue()}, "caption": ["gray 1"]}])
            rows = rows.cast_column("image", Image())
            return DatasetDict({"train": rows, "validation": rows})

    def unreadable():
        (cache,) = make(Source(), image_tokenizer=Levels()).encode("train", quiet=True)
        return cache.unreadable()

    formats = images.FORMATS
    monkeypatch.setattr(images, "FORMATS", tuple(set(formats) - {"HEIF"}))
    assert unreadable() == {"HEIC image without pillow-heif": [0]}
    monkeypatch.setattr(images, "FORMATS", formats)
    assert not unreadable()


def test_augmented_tokens_are_encoded_at_each_step(make):
    tokenizer = Levels()
    data = make(image_tokenizer=tokenizer, augmented_tokens=True)
    for _ in range(2):
        for batch in batches(data, data.train_dataloader(), 2):
            assert set(batch) == {"caption", "image_tokens", "rows"}
            assert (batch["image_tokens"][:, 0, 0] // 10).tolist() == row_indices(batch)
    assert tokenizer.encoded == 16
    batches(data, data.val_dataloader())
    batches(data, data.val_dataloader())
    assert tokenizer.encoded == 24  # the tokens of validation come from disk


class Speckles(Levels):
    """Image tokenizer whose tokens identify the crop: the levels of its first pixels."""

    def encode(self, images):
        self.encoded += len(images)
        return (images[:, 0, :2, :2] * 255).round().long()


def test_crops_are_encoded_once_and_used_in_turn(make):
    def train(tokenizer, epochs=1, **settings):
        data = make(
            image_tokenizer=tokenizer, train_transform=Noise(), crops_per_image=3, **settings
        )
        tokens_by_epoch = [{} for _ in range(epochs)]
        loader = data.train_dataloader()
        for index, batch in enumerate(batches(data, loader, 2 * epochs)):
            for row, tokens in zip(row_indices(batch), batch["image_tokens"], strict=True):
                tokens_by_epoch[index // 2][row] = tuple(tokens.flatten().tolist())
        return tokens_by_epoch

    tokenizer = Speckles()
    first = train(tokenizer, epochs=6)
    assert tokenizer.encoded == 3 * 8
    for row in range(8):
        crops = [epoch[row] for epoch in first]
        assert crops[:3] == crops[3:]
        assert len(set(crops[:3])) == 3
    unused = Speckles()
    assert train(unused, epochs=6) == first
    assert unused.encoded == 0
    assert train(Speckles(), epochs=6, seed=1) != first


@dataclass(frozen=True)
class ByCaption:
    """Transform to the gray level 200 for images with a caption on "gray 3", else to 100."""

    level: int = 100

    def for_captions(self, captions):
        return ByCaption(200) if "gray 3" in captions else self

    def __call__(self, image):
        return PILImage.new("RGB", image.size, (self.level,) * 3)


@pytest.mark.parametrize("settings", [{"crops_per_image": 2}, {"augmented_tokens": True}])
def test_a_transform_may_depend_on_all_captions_of_an_image(make, settings):
    data = make(image_tokenizer=Levels(), train_transform=ByCaption(), **settings)
    found = {}
    for batch in batches(data, data.train_dataloader(), 4):
        levels = batch["image_tokens"][:, 0, 0].tolist()
        rows = [int(caption.split()[1]) for caption in batch["caption"]]
        found |= dict(zip(rows, levels, strict=True))
    assert found == {row: 200 if row == 3 else 100 for row in range(8)}


def test_validation_uses_the_center_crop(make):
    tokenizer = Levels()
    data = make(image_tokenizer=tokenizer, train_transform=Noise(), crops_per_image=2)
    for batch in batches(data, data.val_dataloader()):
        assert (batch["image_tokens"][:, 0, 0] // 10).tolist() == row_indices(batch)
    assert tokenizer.encoded == 8


@pytest.mark.parametrize("flipped", [StageTwoCrop(SIZE, flip=True), StageOneCrop(SIZE)])
def test_flips_that_no_image_token_has_are_an_error(make, flipped):
    data = make(image_tokenizer=Levels(), train_transform=flipped)
    with pytest.raises(UserError, match=r"flip=true has no effect .* set data.crops_per_image=8"):
        data.train_dataloader()
    assert batches(data, data.val_dataloader())


@pytest.mark.parametrize(
    "settings",
    [
        {"image_tokenizer": None},
        {"crops_per_image": 1},
        {"augmented_tokens": True},
        {"source": TinySource(streaming=True)},
    ],
)
def test_crops_and_images_that_are_read_anew_may_be_flipped(make, settings):
    settings = {"image_tokenizer": Levels(), **settings}
    data = make(train_transform=StageTwoCrop(SIZE, flip=True), **settings)
    assert batches(data, data.train_dataloader(), 1)


@pytest.mark.parametrize("name", ["images", "bit_depth", "transforms"])
def test_images_are_encoded_again_when_the_code_that_decodes_them_changes(make, name, monkeypatch):
    def encoded():
        tokenizer = Levels()
        make(image_tokenizer=tokenizer).encode("train", quiet=True)
        return tokenizer.encoded

    def changed_source(module):
        return source(module) + "#" * (module.__name__ == f"tilewright.data.{name}")

    assert (encoded(), encoded()) == (8, 0)
    source = inspect.getsource
    monkeypatch.setattr("inspect.getsource", changed_source)
    assert (encoded(), encoded()) == (8, 0)
