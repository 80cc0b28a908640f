"""Images that show a number in their color, with the number in the caption."""

import json
from io import BytesIO

import PIL.Image
import pytest
from datasets import Dataset, Image

from tilewright.data.images import decode_image
from tilewright.errors import UserError


def png(number):
    buffer = BytesIO()
    PIL.Image.new("RGB", (4, 4), (number % 256, number // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def numbered_rows(numbers):
    """Returns a table of encoded images and captions."""
    return Dataset.from_dict(
        {"image": [png(n) for n in numbers], "caption": [f"number {n}" for n in numbers]}
    )


def write_folder(root, numbers, captions="jsonl"):
    """Writes a folder of images, with captions in one of the supported formats or None."""
    root.mkdir(parents=True, exist_ok=True)
    for n in numbers:
        (root / f"{n}.png").write_bytes(png(n))
    rows = [{"file_name": f"{n}.png", "caption": f"number {n}"} for n in numbers]
    if captions == "jsonl":
        (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif captions == "csv":
        lines = [f"{row['file_name']},{row['caption']}" for row in rows]
        (root / "metadata.csv").write_text("\n".join(["file_name,text", *lines]))
    elif captions == "txt":
        for n in numbers:
            (root / f"{n}.txt").write_text(f"number {n}\n")
    return str(root)


def numbers_by_split(splits):
    """Returns {split: set of numbers}, and asserts that each caption matches its image."""
    numbers = {}
    for name, split in splits.items():
        assert split.column_names == ["image", "caption"]
        assert isinstance(split.features["image"], Image)
        rows = list(split.cast_column("image", Image(decode=False)))
        for row in rows:
            n = int(row["caption"].removeprefix("number "))
            assert decode_image(row["image"]).getpixel((0, 0)) == (n % 256, n // 256, 7)
        numbers[name] = {int(row["caption"].removeprefix("number ")) for row in rows}
        assert len(numbers[name]) == len(rows)
    return numbers


def assert_load_fails(source, *words):
    """Asserts that loading fails with one line that contains the words."""
    with pytest.raises(UserError) as error:
        source.load()
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
