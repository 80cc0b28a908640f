"""Each image becomes a row or is counted, for any file name and any bytes."""

import contextlib
import io
import json
import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from helpers.numbered_images import png
from tilewright.data import CaptionedImages
from tilewright.data.images import IMAGE_SUFFIXES, REASONS, UnreadableImage, decode_image
from tilewright.data.sources import FolderSource
from tilewright.data.transforms import CenterCrop, StageOneCrop, StageTwoCrop

SIZE = 8
EXAMPLES = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

letters = st.characters(exclude_categories=["Cs"], exclude_characters="/\0")
stems = st.one_of(st.text(letters, max_size=20), st.text(" .-_#%\\\n\t'\"", max_size=8))
file_names = st.builds("{}{}".format, stems, st.sampled_from([".png", ".PNG", ".JPG", ".jp2"]))
MODES = {
    "PNG": ["1", "L", "LA", "I;16", "P", "RGB", "RGBA"],
    "JPEG": ["L", "RGB", "CMYK"],
    "TIFF": ["1", "L", "LA", "I;16", "I", "F", "P", "RGB", "RGBA", "CMYK"],
    "GIF": ["1", "L", "P", "RGB"],
    "WEBP": ["RGB", "RGBA"],
    "BMP": ["1", "L", "P", "RGB"],
    "PPM": ["1", "L", "I;16", "RGB"],
    "TGA": ["L", "LA", "P", "RGB", "RGBA"],
    "ICO": ["L", "RGBA"],
    "JPEG2000": ["L", "RGB", "RGBA"],
    "PCX": ["1", "L", "P", "RGB"],
    "SGI": ["L", "RGB", "RGBA"],
    "HEIF": ["RGB", "RGBA"],
    "AVIF": ["RGB", "RGBA"],
}


@pytest.fixture(autouse=True)
def empty_datasets_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def read_all(root, transform=None):
    """Returns the number of rows of each caption, and the numbers of skipped rows by reason."""
    data = CaptionedImages(
        FolderSource(str(root), validation_fraction=0.5),
        image_size=SIZE,
        batch_size=4,
        train_transform=transform or CenterCrop(SIZE),
        eval_transform=transform or CenterCrop(SIZE),
    )
    captions = Counter()
    for split in data.splits:
        for batch in data.dataloader(split):
            captions.update(data.on_after_batch_transfer(batch, 0)["caption"])
            assert 0 <= batch["image"].min() <= batch["image"].max() <= 1
    return captions, data.skip_counts.reasons


@given(names=st.sets(file_names, min_size=1, max_size=6))
@EXAMPLES
def test_any_file_name_is_a_row_or_counted(names, tmp_path_factory, caplog):
    root = tmp_path_factory.mktemp("images")
    for number, name in enumerate(["one.png", "two.png", *sorted(names)]):
        (root / name).write_bytes(png(number))
    rows = [{"file_name": name, "caption": f"named {name!r}"} for name in names]
    rows += [{"file_name": "one.png", "caption": "1"}, {"file_name": "two.png", "caption": "2"}]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    caplog.clear()
    with caplog.at_level(logging.INFO):
        captions, skipped = read_all(root)
    hidden = {name for name in names if name.startswith(".")}
    expected = {f"named {name!r}" for name in names - hidden - {"one.png", "two.png"}}
    assert set(captions) - {"1", "2"} >= expected
    assert not skipped
    hidden_images = [name for name in hidden if Path(name).suffix]  # ".png" has no suffix
    if hidden_images:
        assert f"{len(hidden_images)} file(s) in" in caplog.text


@given(st.data())
@EXAMPLES
def test_any_image_is_a_row_or_counted(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("images")
    for number in range(2):
        (root / f"good{number}.png").write_bytes(png(number))
        (root / f"good{number}.txt").write_text(f"good {number}")
    count = data.draw(st.integers(1, 4))
    for number in range(count):
        content = data.draw(encoded_images())
        (root / f"{number}.png").write_bytes(content + bytes([number]))  # not a copy
        (root / f"{number}.txt").write_text(f"any {number}")
    transform = data.draw(st.sampled_from([CenterCrop, StageOneCrop, StageTwoCrop]))(SIZE)
    captions, skipped = read_all(root, transform)
    read = [caption for caption in captions if caption.startswith("any")]
    assert len(read) + skipped.total() == count
    assert set(skipped) <= set(REASONS)


@st.composite
def encoded_images(draw):
    """Bytes of an image of any mode, size and format, or damaged bytes of one."""
    form = draw(st.sampled_from(sorted(MODES)))
    mode = draw(st.sampled_from(MODES[form]))
    sides = st.one_of(st.integers(1, 20), st.integers(1, 3000))
    width, height = draw(sides), draw(st.integers(1, 20))
    if draw(st.booleans()):
        width, height = height, width
    seed = draw(st.integers(0, 9))
    samples = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode in ("I", "F", "I;16"):
        dtype = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
        image = Image.fromarray(samples[..., 0].astype(dtype) * dtype(draw(st.integers(0, 257))))
    else:
        image = Image.fromarray(samples).convert("RGB").convert(mode)
    file = io.BytesIO()
    try:
        image.save(file, form)
    except (ValueError, OSError):  # the format does not hold this size
        return b"not an image"
    content = bytearray(file.getvalue())
    for _ in range(draw(st.sampled_from([0, 0, 1, 10]))):
        content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    end = draw(st.sampled_from([1.0, 1.0, 0.9, 0.1, 0.0]))
    return bytes(content[: round(len(content) * end)])


@given(
    content=st.one_of(encoded_images(), st.binary(max_size=200)),
    suffix=st.sampled_from(sorted(IMAGE_SUFFIXES)),
)
@settings(EXAMPLES, max_examples=150)
def test_any_bytes_are_an_rgb_image_or_unreadable(content, suffix, tmp_path_factory):
    file = tmp_path_factory.getbasetemp() / f"image{suffix}"
    file.write_bytes(content)
    for record in ({"bytes": content}, {"path": str(file)}):
        with contextlib.suppress(UnreadableImage):
            assert decode_image(record).mode == "RGB"
