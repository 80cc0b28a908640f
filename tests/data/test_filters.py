"""Filters of the paper: dropped pairs and their counts."""

import io
import logging

import pytest
from datasets import Dataset, DatasetDict, Features, Image, IterableDatasetDict, List, Value
from PIL import Image as PILImage

from tilewright.data import CaptionedImages
from tilewright.data.filters import AspectRatio, Boilerplate, CaptionLength, English
from tilewright.data.transforms import CenterCrop
from tilewright.errors import UserError

PHRASES = ["photographed on <date>", "image may contain"]


@pytest.mark.parametrize(
    ("size", "kept"), [((8, 8), True), ((16, 8), True), ((8, 16), True), ((17, 8), False)]
)
def test_aspect_ratio_filter(size, kept):
    assert AspectRatio(2.0).keeps_image(*size) == kept


@pytest.mark.parametrize(
    ("caption", "kept"),
    [("dog", False), ("a dog", True), ("  dog ", False), ("赤い丸い円", True), ("犬", False)],
)
def test_caption_length_filter(caption, kept):
    assert CaptionLength(2).keeps_caption(caption) == kept


@pytest.mark.parametrize(
    ("caption", "kept"),
    [
        ("Photographed on 12 May 2014", False),
        ("photographed on 2014-05-12", False),
        ("photographed on May 3rd, 1999.", False),
        ("photographed on a hill in May", True),
        ("an old red tractor in front of a farm in Kansas, photographed on 12 May 2014", True),
        ("Image may contain: outdoor", False),
        ("a boat", True),
    ],
)
def test_boilerplate_filter(caption, kept):
    assert Boilerplate(PHRASES).keeps_caption(caption) == kept


def test_invalid_boilerplate_phrase_is_an_error():
    with pytest.raises(UserError, match="invalid regular expression"):
        Boilerplate(["(a"])


@pytest.mark.parametrize(
    ("caption", "kept"),
    [
        ("a large red circle on the left", True),
        ("ein großer roter Kreis auf der linken Seite", False),
        ("赤い丸が左にあります", False),
    ],
)
def test_english_filter(caption, kept):
    pytest.importorskip("gcld3")
    assert English().keeps_caption(caption) == kept


def test_english_filter_without_its_package_is_an_error(monkeypatch):
    from tilewright.data import filters

    filters._classifier.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "gcld3", None)
    with pytest.raises(UserError, match=r"pip install .tilewright\[filters\]"):
        English()


class Source:
    """Source with rows that the filters drop, and one row with a broken image."""

    ROWS = (
        ((8, 8), ["a red dog"]),
        ((24, 8), ["a wide dog"]),
        ((8, 8), ["dog"]),
        ((8, 8), ["photographed on 12 May 2014", "a blue dog"]),
        ((8, 8), ["photographed on 12 May 2014"]),
        (None, ["a broken dog"]),
    )

    def __init__(self, streaming):
        self.streaming = streaming

    def load(self):
        images = [{"bytes": self.image(size), "path": None} for size, _ in self.ROWS]
        features = Features({"image": Image(decode=False), "caption": List(Value("string"))})
        captions = [captions for _, captions in self.ROWS]
        rows = Dataset.from_dict({"image": images, "caption": captions}, features=features)
        if self.streaming:
            rows = rows.to_iterable_dataset()
            return IterableDatasetDict({"train": rows, "validation": rows})
        return DatasetDict({"train": rows, "validation": rows})

    def image(self, size):
        file = io.BytesIO(b"not an image")
        if size:
            PILImage.new("RGB", size).save(file, "PNG")
        return file.getvalue()


@pytest.mark.parametrize("streaming", [False, True])
def test_dropped_rows_are_counted_by_reason(streaming, caplog):
    filters = {"a": AspectRatio(), "b": CaptionLength(), "c": Boilerplate(PHRASES)}
    crop = CenterCrop(8)
    data = CaptionedImages(Source(streaming), 8, 3, crop, crop, filters=filters)
    with caplog.at_level(logging.INFO):
        batches = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    captions = [caption for batch in batches for caption in batch["caption"]]
    assert sorted(captions) == ["a blue dog", "a red dog"]
    assert sorted(data.captions()) == [
        "a blue dog",
        "a broken dog",
        "a red dog",
        *["a wide dog"] * streaming,
    ]
    if streaming:
        filtered = dict.fromkeys(("aspect ratio", "boilerplate", "short caption"), 1)
        assert data.skip_counts.reasons == {**filtered, "not an image": 1}
    else:
        dropped = "3 of 6 rows dropped: 1 × aspect ratio, 1 × boilerplate, 1 × short caption"
        assert f"validation: {dropped}" in caplog.text
        assert data.skip_counts.reasons == {"not an image": 1}


def test_filters_that_drop_all_rows_are_an_error():
    crop = CenterCrop(8)
    data = CaptionedImages(Source(False), 8, 2, crop, crop, filters={"a": CaptionLength(9)})
    with pytest.raises(UserError, match=r"the filters keep no row of train \(6 × short caption\)"):
        data.setup()
