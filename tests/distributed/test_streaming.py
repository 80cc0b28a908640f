"""Two processes share streaming data: no row is lost or read twice, and a resume is exact."""

import io
import tarfile

import pytest
import torch
from datasets import Dataset
from PIL import Image

from helpers import killing, tiny
from helpers.multiprocess import logged_metrics, train
from tilewright.callbacks import SkippedRows
from tilewright.data.sources import HubSource
from tilewright.data.sources.webdataset import WebDatasetSource

SHARDS, GOOD = 4, 6  # each shard has 6 good records and a broken one
SHARE = 2  # rows of a batch that each of the two processes reads
EPOCH = SHARDS * GOOD // (2 * SHARE)  # updates


def record(index):
    """Returns an image file and its caption. The last record of each shard is broken."""
    if index % (GOOD + 1) == GOOD:
        return b"no picture", f"picture {index}"
    file = io.BytesIO()
    side = tiny.SIZE + 4
    Image.effect_noise((side, side), 9 * index + 9).convert("RGB").save(file, "PNG")
    return file.getvalue(), f"picture {index}"


def webdataset(folder):
    """Writes each shard and a validation split as tar files."""
    for shard in range(SHARDS + 1):
        name = f"train-{shard}.tar" if shard < SHARDS else "val.tar"
        with tarfile.open(folder / name, "w") as tar:
            for index in range(shard * (GOOD + 1), (shard + 1) * (GOOD + 1)):
                for extension, data in zip(("png", "txt"), record(index), strict=True):
                    data = data if isinstance(data, bytes) else data.encode()
                    info = tarfile.TarInfo(f"{index:03}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return WebDatasetSource(str(folder))


def hub(folder):
    """Writes each shard and a validation split as parquet files, in the layout of the Hub."""
    for shard in range(SHARDS + 1):
        name = f"train-{shard:05}" if shard < SHARDS else "validation-00000"
        records = map(record, range(shard * (GOOD + 1), (shard + 1) * (GOOD + 1)))
        rows = [{"image": {"bytes": data, "path": None}, "caption": text} for data, text in records]
        Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
    return HubSource(str(folder), streaming=True)


@pytest.fixture(params=[webdataset, hub])
def source(request, tmp_path, monkeypatch):
    """Source of each kind. A test that needs one kind only parametrizes it indirectly."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "shards"
    folder.mkdir()
    return request.param(folder)


GOOD_CAPTIONS = sorted(f"picture {n}" for n in range(SHARDS * (GOOD + 1)) if n % (GOOD + 1) != GOOD)


def captions(folder, processes=2):
    """Returns the training captions of each process."""
    return [torch.load(folder / f"{rank}.notes")["captions"] for rank in range(processes)]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_read_every_row_once_and_resume_within_an_epoch(source, workers, tmp_path):
    arguments = {"source": source, "workers": workers, "extra_callbacks": [SkippedRows()]}
    arguments["patches"] = {"datasets.config.HF_DATASETS_CACHE": tmp_path / "cache"}
    train("dvae", tmp_path / "uninterrupted", 2, steps=2 * EPOCH, **arguments)
    expected = captions(tmp_path / "uninterrupted")
    for epoch in (slice(0, EPOCH * SHARE), slice(EPOCH * SHARE, None)):
        assert sorted(expected[0][epoch] + expected[1][epoch]) == GOOD_CAPTIONS
    assert expected[0][: EPOCH * SHARE] != expected[0][EPOCH * SHARE :]
    saved = torch.load(tmp_path / "uninterrupted" / killing.LAST, weights_only=True)
    skips = saved["CaptionedImages"]["skip_counts"]
    reasons = {"not an image": 2 * SHARDS}
    assert skips == {"read": 2 * SHARDS * (GOOD + 1), "reasons": reasons, "truncated": 0}

    skipped = logged_metrics(tmp_path / "uninterrupted")[6, "skipped/not_an_image"]
    assert SHARDS <= skipped <= SHARDS + 2  # those of one epoch and an update

    middle = EPOCH + 1  # a validation, so that the stop adds none
    train("dvae", tmp_path / "resumed", 2, steps=middle, **arguments)
    assert captions(tmp_path / "resumed") == [read[: middle * SHARE] for read in expected]
    train("dvae", tmp_path / "resumed", 2, steps=2 * EPOCH, **arguments)
    assert captions(tmp_path / "resumed") == [read[middle * SHARE :] for read in expected]
    assert killing.differences(tmp_path / "uninterrupted", tmp_path / "resumed") == []
    saved = torch.load(tmp_path / "resumed" / killing.LAST, weights_only=True)
    assert saved["CaptionedImages"]["skip_counts"] == skips


@pytest.mark.slow
@pytest.mark.parametrize("source", [webdataset], indirect=True)
@pytest.mark.parametrize("stretches", [(2, 2, 2), (2, 1, 2)])
def test_a_training_that_stops_twice_reads_every_row_once(source, stretches, tmp_path):
    arguments = {"source": source, "folder": tmp_path / "run", "stage": "dvae"}
    arguments["patches"] = {"datasets.config.HF_DATASETS_CACHE": tmp_path / "cache"}
    seen = []
    for index, processes in enumerate(stretches, start=1):
        train(processes=processes, steps=index * EPOCH // 3, **arguments)
        for read in captions(tmp_path / "run", processes):
            seen += read
    assert sorted(seen) == GOOD_CAPTIONS
