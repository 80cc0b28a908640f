"""Filters of the paper: dropped pairs and their counts."""

import importlib
import io
import linecache
import logging
import math
import os
import sys

import pytest
from datasets import Dataset, DatasetDict, Features, Image, IterableDatasetDict, List, Value
from PIL import Image as PILImage

from tilewright.data import CaptionedImages, filters
from tilewright.data.filters import AspectRatio, Boilerplate, CaptionLength, English, filter_table
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


OFF = {"null": None, "settings of another option": {"max_ratio": 1.0}}


@pytest.mark.parametrize("streaming", [False, True])
def test_dropped_rows_are_counted_by_reason(streaming, caplog):
    chosen = {"a": AspectRatio(), "b": CaptionLength(), "c": Boilerplate(PHRASES), **OFF}
    crop = CenterCrop(8)
    data = CaptionedImages(Source(streaming), 8, 3, crop, crop, filters=chosen)
    with caplog.at_level(logging.INFO):
        batches = [data.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
    assert "data.filters.settings of another option is off, so {'max_ratio': 1.0}" in caplog.text
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


FILTER = """
from tilewright.data.filters import Filter

class Words(Filter):
    reason = "word"

    def keeps_caption(self, caption):
        return {word!r} not in caption
"""


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Rows on disk, whose results `datasets` caches, and their image files."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    files = [tmp_path / f"{name}.png" for name in ("red", "blue", "green")]
    for file in files:
        PILImage.new("RGB", (8, 8)).save(file)
    captions = [f"a {file.stem} dog" for file in files]
    rows = Dataset.from_dict({"image": [str(file) for file in files], "caption": captions})
    rows.to_parquet(tmp_path / "rows.parquet")
    rows = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    return rows.cast_column("image", Image(decode=False)), files


def test_filters_run_again_when_their_code_changes(stored, tmp_path, monkeypatch):
    rows, _ = stored
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)  # a changed file in the same second
    kept = []
    for word in ("red", "blue"):
        (tmp_path / "own_filter.py").write_text(FILTER.format(word=word))
        monkeypatch.delitem(sys.modules, "own_filter", raising=False)
        linecache.clearcache()
        importlib.invalidate_caches()
        own = importlib.import_module("own_filter")
        kept.append(filter_table("train", rows, [own.Words()])["caption"][:])
    assert kept == [["a blue dog", "a green dog"], ["a red dog", "a green dog"]]


def test_filters_run_again_when_an_image_changes_on_disk(stored):
    rows, files = stored
    assert len(filter_table("train", rows, [AspectRatio()])) == 3
    before = files[1].stat()
    PILImage.new("RGB", (32, 8)).save(files[1])
    os.utime(files[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert filter_table("train", rows, [AspectRatio()])["caption"][:] == [
        "a red dog",
        "a green dog",
    ]


def test_filters_of_the_same_code_and_images_run_once(stored, monkeypatch):
    rows, _ = stored
    calls = []
    run = filters._drop_reasons
    monkeypatch.setattr(
        filters, "_drop_reasons", lambda *a, **k: (calls.append(1), run(*a, **k))[1]
    )
    for _ in range(2):
        filter_table("train", rows, [AspectRatio()])
    assert len(calls) == 1


class Unpicklable(AspectRatio):
    def __reduce__(self):
        raise TypeError("cannot pickle")


def test_a_filter_that_cannot_be_pickled_works(stored):
    assert len(filter_table("train", stored[0], [Unpicklable()])) == 3


@pytest.mark.parametrize(
    "make", [lambda: AspectRatio(0.5), lambda: AspectRatio(math.nan), lambda: CaptionLength(-1)]
)
def test_a_filter_with_an_impossible_number_is_refused(make):
    with pytest.raises(UserError, match=r"data\.filters\..* is not possible"):
        make()
