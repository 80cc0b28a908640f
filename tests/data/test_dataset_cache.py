"""A full disk under the cache of `datasets`."""

import errno

import pytest
from datasets import Dataset
from datasets.arrow_writer import ArrowWriter

from helpers.gray import png
from tilewright.data.sources import FolderSource, HubSource, ParquetSource
from tilewright.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder)
    return folder


def write_folder(folder):
    for level in range(6):
        (folder / f"{level}.png").write_bytes(png(level))
        (folder / f"{level}.txt").write_text(f"plain {level}")


def write_parquet(folder):
    images = [{"bytes": png(level), "path": None} for level in range(6)]
    rows = Dataset.from_dict({"image": images, "caption": ["gray"] * 6})
    rows.to_parquet(folder / "train.parquet")


@pytest.mark.parametrize(
    ("source", "write"),
    [(FolderSource, write_folder), (ParquetSource, write_parquet), (HubSource, write_parquet)],
)
@pytest.mark.parametrize("writes", [0, 1])  # then the disk is full; the second one is of a split
def test_a_full_disk_is_one_line(make, source, write, writes, tmp_path, cache, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    write(folder)
    finalize, left = ArrowWriter.finalize, [None] * writes

    def fill_disk(*arguments, **options):
        if not left:
            raise OSError(errno.ENOSPC, "No space left on device")
        left.pop()
        return finalize(*arguments, **options)

    monkeypatch.setattr(ArrowWriter, "finalize", fill_disk)
    with pytest.raises(UserError, match=r"No space left on device\): free space") as error:
        make(source(str(folder), validation_fraction=0.5)).setup()
    assert str(cache) in str(error.value)
    assert "HF_DATASETS_CACHE" in str(error.value)
    assert "\n" not in str(error.value)
