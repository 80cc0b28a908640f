"""Order of the rows: the first rows of a split are a sample of all its classes, for every source.

Each source stores its rows in the order of their classes, as most folders and datasets do.
"""

import io
import tarfile
from itertools import islice

import pytest
from datasets import Dataset, DatasetDict, Image

from helpers.numbered_images import png
from tilewright.data import CaptionedImages
from tilewright.data.sources import FolderSource, HubSource, ParquetSource, WebDatasetSource
from tilewright.data.transforms import CenterCrop

CLASSES = "abcdefghijklm"
ROWS = 12  # per class
FIRST = 64  # rows to read
SOURCES = ["folder", "parquet", "hub", "webdataset", "streaming webdataset", "streaming hub"]


def rows(split):
    """Rows of a split, sorted by class: (class, name, encoded image)."""
    first = 0 if split == "train" else 1000
    for c, name in enumerate(CLASSES):
        for n in range(ROWS):
            yield name, f"{name}/{n}", png(first + c * ROWS + n)


def table(split):
    encoded = Dataset.from_list([{"image": p, "caption": f"class {c}"} for c, _, p in rows(split)])
    return encoded.cast_column("image", Image())


def write_folder(root):
    for split in ("train", "validation"):
        for name, path, image in rows(split):
            file = root / split / f"{path}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image)
            file.with_suffix(".txt").write_text(f"class {name}")


def write_shards(root):
    root.mkdir()
    for split in ("train", "validation"):
        members = list(rows(split))
        for shard in range(2):
            with tarfile.open(root / f"{split}-{shard}.tar", "w") as tar:
                for name, path, image in members[shard::2]:
                    for suffix, content in (("png", image), ("txt", f"class {name}".encode())):
                        info = tarfile.TarInfo(f"{path.replace('/', '-')}.{suffix}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))


def make_source(kind, root):
    streaming = kind.startswith("streaming")
    if kind == "folder":
        write_folder(root)
        return FolderSource(str(root))
    if kind.endswith("webdataset"):
        write_shards(root)
        return WebDatasetSource(str(root), streaming=streaming)
    if kind == "hub":
        splits = {split: table(split) for split in ("train", "validation")}
        DatasetDict(splits).save_to_disk(str(root))
        return HubSource(str(root))
    root.mkdir()
    for split in ("train", "validation"):
        table(split).to_parquet(root / f"{split}-0.parquet")
    return HubSource(str(root), streaming=True) if streaming else ParquetSource(str(root))


def classes(captions):
    return {caption.removeprefix("class ") for caption in captions}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_first_rows_are_of_all_classes(kind, tmp_path):
    source = make_source(kind, tmp_path / "data")
    crop = CenterCrop(4)

    def first_rows(seed):
        data = CaptionedImages(source, 4, 8, crop, crop, seed=seed)
        batches = islice(data.val_dataloader(), FIRST // 8)
        validated = [caption for batch in batches for caption in batch["caption"]]
        examples = [caption for _, caption in data.examples("validation", FIRST)]
        return validated, examples, list(islice(data.captions("train"), FIRST))

    validated, examples, captions = first_rows(seed=0)
    assert classes(validated) == classes(examples) == classes(captions) == set(CLASSES)
    assert validated == examples
    assert first_rows(seed=1) == (validated, examples, captions)


def test_a_part_of_a_split_is_a_sample(tmp_path):
    crop = CenterCrop(4)
    data = CaptionedImages(make_source("folder", tmp_path), 4, 8, crop, crop)
    for part in ("validation[:64]", "validation[64:128]"):
        assert classes(caption for _, caption in data.examples(part, FIRST)) == set(CLASSES)
