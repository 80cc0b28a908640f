"""Images without a caption: used with `require_captions=False`, otherwise left out and counted."""

import io
import tarfile

import pytest
from datasets import Dataset

from helpers.numbered_images import png, write_folder
from tilewright.data import (
    CaptionedImages,
    CaptionLength,
    CenterCrop,
    FolderSource,
    HubSource,
    ParquetSource,
    WebDatasetSource,
)
from tilewright.errors import UserError

COUNT = 40
FORMS = ["folder", "parquet", "hub", "hub, streaming", "tar", "tar, streaming"]
TABLES = [form for form in FORMS if "streaming" not in form]
CAPTIONED = {n for n in range(COUNT) if n % 5}


@pytest.fixture(autouse=True)
def empty_datasets_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(form, folder, captioned):
    """Writes images, some with captions, and returns their source."""
    is_streaming = "streaming" in form
    captions = {n: f"number {n}" if n in captioned else None for n in range(COUNT)}
    if form == "folder":
        write_folder(folder, captions, captions=None)
        for n in captioned:
            (folder / f"{n}.txt").write_text(captions[n])
        return FolderSource(str(folder))
    if form.startswith("tar"):
        with tarfile.open(folder / "a.tar", "w") as tar:
            for n, caption in captions.items():
                for ending, content in (("png", png(n)), ("txt", caption and caption.encode())):
                    if content:
                        info = tarfile.TarInfo(f"{n}.{ending}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
        keys = {} if captioned else {"caption_keys": None}
        return WebDatasetSource(str(folder), streaming=is_streaming, **keys)
    columns = {"image": [png(n) for n in captions]}
    if captioned:
        columns["caption"] = list(captions.values())
    Dataset.from_dict(columns).to_parquet(folder / "a.parquet")
    column = {} if captioned else {"caption_column": None}
    if form == "parquet":
        return ParquetSource(str(folder), **column)
    return HubSource(str(folder), streaming=is_streaming, **column)


def make(source, **settings):
    """Returns the data of a source."""
    return CaptionedImages(source, 4, 4, None, CenterCrop(4), **settings)


def read(data):
    """Returns {split: {number: caption}}, with the numbers that the images show."""
    splits = {}
    for split in ("train", "validation"):
        splits[split] = {}
        for batch in data.dataloader(split):
            batch = data.on_after_batch_transfer(batch, 0)
            numbers = (255 * batch["image"][:, 0, 0, 0]).round().int().tolist()
            splits[split] |= dict(zip(numbers, batch["caption"], strict=True))
    return splits


@pytest.mark.parametrize("form", FORMS)
def test_the_split_of_an_image_does_not_depend_on_captions(form, tmp_path, caplog):
    source = write(form, tmp_path, CAPTIONED)
    used = read(make(source, require_captions=False))
    assert {n for split in used.values() for n in split} == {*range(COUNT)}
    for split in used.values():
        assert all(split[n] == (f"number {n}" if n in CAPTIONED else "") for n in split)
    assert "skipped" not in caplog.text
    data = make(source)
    assert read(data) == {
        name: {n: caption for n, caption in split.items() if caption}
        for name, split in used.items()
    }
    if form in TABLES:
        assert "rows of train have no caption and are skipped: " in caplog.text
    else:
        assert data.skip_counts.reasons == {"no caption": COUNT - len(CAPTIONED)}


@pytest.mark.parametrize("form", FORMS)
def test_no_image_needs_a_caption(form, tmp_path):
    source = write(form, tmp_path, set())
    used = read(make(source, require_captions=False))
    assert dict.fromkeys(range(COUNT), "") == used["train"] | used["validation"]
    message = "split train has a caption" if form in TABLES else "no row of the data can be used"
    with pytest.raises(UserError, match=rf"{message} \(\d+ × no caption"):
        next(iter(make(source).train_dataloader()))


def test_filters_of_captions_keep_images_without_one(tmp_path):
    source = write("folder", tmp_path, CAPTIONED)
    (tmp_path / "1.txt").write_text("short")
    for required in (False, True):
        data = make(source, filters={"length": CaptionLength()}, require_captions=required)
        numbers = {n for split in read(data).values() for n in split}
        assert numbers == (CAPTIONED if required else {*range(COUNT)}) - {1}


def test_captions_that_are_left_out_are_counted_with_an_example(tmp_path, caplog):
    captions = [["a b", "nan"], [None], ["c d"], ["\u200b"], [""], ["e f"]]
    rows = Dataset.from_dict({"image": [png(n) for n in range(6)], "caption": captions})
    rows.save_to_disk(str(tmp_path / "set"))
    data = make(HubSource(str(tmp_path / "set"), split={"train": "train", "test": "train"}))
    data.setup()
    assert len(data.table("train")) == 3
    assert (
        "3 of 6 rows of train have no caption and are skipped: "
        "2 × empty caption (such as row 3), 1 × no caption (such as row 1)"
    ) in caplog.text
    assert "their rows have others: 1 × no caption (such as row 0)" in caplog.text


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_split_without_captions_does_not_validate_captioned_images(name, tmp_path, caplog):
    write_folder(tmp_path / "train", range(30))
    write_folder(tmp_path / name, range(30, 40), captions=None)
    source = FolderSource(str(tmp_path))
    splits = [sorted(make(source, require_captions=required).splits) for required in (True, False)]
    assert splits == [
        ["train", "validation"],
        [*(["test"] * (name == "test")), "train", "validation"],
    ]
    assert read(make(source)) == read(make(source, require_captions=False))
    unused = {
        "validation": "not used: 'validation' (10 rows)",
        "test": "10 of 10 rows of test have",
    }
    assert unused[name] in caplog.text


def test_each_split_has_an_image_with_a_caption(tmp_path):
    source = write("folder", tmp_path, {0, 1})
    images = read(make(source, require_captions=False))
    assert [len({0, 1} & split.keys()) for split in images.values()] == [1, 1]
    assert len(images["train"]) > 1
