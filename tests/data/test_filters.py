"""The paper's filters: what they drop, and how it is counted."""

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
def test_aspect_ratio(size, kept):
    assert AspectRatio(2.0).keeps_picture(*size) == kept


@pytest.mark.parametrize(
    ("caption", "kept"),
    [("dog", False), ("a dog", True), ("  dog ", False), ("赤い丸い円", True), ("犬", False)],
)
def test_short_captions(caption, kept):
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
def test_boilerplate(caption, kept):
    assert Boilerplate(PHRASES).keeps_caption(caption) == kept


def test_boilerplate_that_is_no_expression_is_one_line():
    with pytest.raises(UserError, match="no regular expression"):
        Boilerplate(["(a"])


@pytest.mark.parametrize(
    ("caption", "kept"),
    [
        ("a large red circle on the left", True),
        ("ein großer roter Kreis auf der linken Seite", False),
        ("赤い丸が左にあります", False),
    ],
)
def test_english(caption, kept):
    pytest.importorskip("gcld3")
    assert English().keeps_caption(caption) == kept


def test_english_without_its_package_is_one_line(monkeypatch):
    from tilewright.data import filters

    filters._classifier.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "gcld3", None)
    with pytest.raises(UserError, match=r"pip install .tilewright\[filters\]"):
        English()


class Source:
    """Rows of which some are to be dropped, and one that is broken."""

    ROWS = (
        ((8, 8), ["a red dog"]),
        ((24, 8), ["a wide dog"]),
        ((8, 8), ["dog"]),
        ((8, 8), ["photographed on 12 May 2014", "a blue dog"]),
        ((8, 8), ["photographed on 12 May 2014"]),
        (None, ["a broken dog"]),
    )

    def __init__(self, stream):
        self.stream = stream

    def load(self):
        images = [{"bytes": self.picture(size), "path": None} for size, _ in self.ROWS]
        features = Features({"image": Image(decode=False), "caption": List(Value("string"))})
        captions = [captions for _, captions in self.ROWS]
        rows = Dataset.from_dict({"image": images, "caption": captions}, features=features)
        if self.stream:
            rows = rows.to_iterable_dataset()
            return IterableDatasetDict({"train": rows, "validation": rows})
        return DatasetDict({"train": rows, "validation": rows})

    def picture(self, size):
        file = io.BytesIO(b"no picture")
        if size:
            PILImage.new("RGB", size).save(file, "PNG")
        return file.getvalue()


@pytest.mark.parametrize("stream", [False, True])
def test_what_filters_drop_is_counted(stream, caplog):
    filters = {"a": AspectRatio(), "b": CaptionLength(), "c": Boilerplate(PHRASES)}
    crop = CenterCrop(8)
    data = CaptionedImages(Source(stream), 8, 3, crop, crop, filters=filters)
    with caplog.at_level(logging.INFO):
        batches = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    assert [c for batch in batches for c in batch["caption"]] == ["a red dog", "a blue dog"]
    assert list(data.captions()) == [
        "a red dog",
        *["a wide dog"] * stream,
        "a blue dog",
        "a broken dog",
    ]
    if stream:
        filtered = dict.fromkeys(("aspect ratio", "boilerplate", "short caption"), 1)
        assert data.skips.kinds == {**filtered, "not a picture": 1}
    else:
        dropped = "3 of 6 rows dropped: 1 × aspect ratio, 1 × boilerplate, 1 × short caption"
        assert f"validation: {dropped}" in caplog.text
        assert data.skips.kinds == {"not a picture": 1}


def test_filters_that_keep_nothing_are_one_line():
    crop = CenterCrop(8)
    data = CaptionedImages(Source(False), 8, 2, crop, crop, filters={"a": CaptionLength(9)})
    with pytest.raises(UserError, match="the filters keep no row of train: 6 × short caption"):
        data.setup()
