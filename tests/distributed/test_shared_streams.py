"""Streams that two processes of a training share: no row lost or read twice, resumed exactly."""

import io
import tarfile

import pytest
import torch
from datasets import Dataset
from PIL import Image

from helpers import killing, tiny
from helpers.processes import figures, train
from tilewright.callbacks.skipped import Skipped
from tilewright.data.sources import HubSource
from tilewright.data.sources.webdataset import WebDatasetSource

SHARDS, GOOD = 4, 6  # good rows of a shard, which has a broken one too
SHARE = 2  # rows of a batch that each of the two processes reads
EPOCH = SHARDS * GOOD // (2 * SHARE)  # steps


def pair(number):
    """A picture and what it shows; the last of a shard is none."""
    if number % (GOOD + 1) == GOOD:
        return b"no picture", f"picture {number}"
    file = io.BytesIO()
    side = tiny.SIZE + 4
    Image.effect_noise((side, side), 9 * number + 9).convert("RGB").save(file, "PNG")
    return file.getvalue(), f"picture {number}"


def tars(folder):
    """Each shard as a tar file, and one to validate on."""
    for shard in range(SHARDS + 1):
        name = f"train-{shard}.tar" if shard < SHARDS else "val.tar"
        with tarfile.open(folder / name, "w") as tar:
            for number in range(shard * (GOOD + 1), (shard + 1) * (GOOD + 1)):
                for ending, data in zip(("png", "txt"), pair(number), strict=True):
                    data = data if isinstance(data, bytes) else data.encode()
                    info = tarfile.TarInfo(f"{number:03}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return WebDatasetSource(str(folder))


def hub(folder):
    """Each shard as a parquet file of a data set as the Hub has them."""
    for shard in range(SHARDS + 1):
        name = f"train-{shard:05}" if shard < SHARDS else "validation-00000"
        pairs = map(pair, range(shard * (GOOD + 1), (shard + 1) * (GOOD + 1)))
        rows = [{"image": {"bytes": data, "path": None}, "caption": text} for data, text in pairs]
        Dataset.from_list(rows).to_parquet(folder / f"{name}.parquet")
    return HubSource(str(folder), streaming=True)


@pytest.fixture(params=[tars, hub], ids=["webdataset", "hub"])
def source(request, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "shards"
    folder.mkdir()
    return request.param(folder)


def captions(folder):
    """What each process has been trained on, one list for each."""
    return [torch.load(folder / f"{rank}.notes")["captions"] for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_share_a_stream_and_go_on_in_the_middle_of_an_epoch(
    source, workers, tmp_path
):
    shared = {"source": source, "workers": workers, "watch": [Skipped()]}
    train("dvae", tmp_path / "whole", 2, steps=2 * EPOCH, **shared)
    whole = captions(tmp_path / "whole")
    good = sorted(f"picture {n}" for n in range(SHARDS * (GOOD + 1)) if n % (GOOD + 1) != GOOD)
    for epoch in (slice(0, EPOCH * SHARE), slice(EPOCH * SHARE, None)):
        assert sorted(whole[0][epoch] + whole[1][epoch]) == good
    assert whole[0][: EPOCH * SHARE] != whole[0][EPOCH * SHARE :]
    saved = torch.load(tmp_path / "whole" / killing.LAST, weights_only=True)
    skips = saved["CaptionedImages"]["skip_counts"]
    assert skips == {"read": 2 * SHARDS * (GOOD + 1), "reasons": {"not an image": 2 * SHARDS}}

    logged = figures(tmp_path / "whole")
    assert logged[6, "skipped/not_an_image"] >= SHARDS  # of one epoch, and a step
    assert logged[6, "skipped/not_an_image"] <= SHARDS + 2

    middle = EPOCH + EPOCH // 2
    train("dvae", tmp_path / "stopped", 2, steps=middle, **shared)
    assert captions(tmp_path / "stopped") == [seen[: middle * SHARE] for seen in whole]
    train("dvae", tmp_path / "stopped", 2, steps=2 * EPOCH, **shared)
    assert captions(tmp_path / "stopped") == [seen[middle * SHARE :] for seen in whole]
    assert killing.differences(tmp_path / "whole", tmp_path / "stopped") == []
    saved = torch.load(tmp_path / "stopped" / killing.LAST, weights_only=True)
    assert saved["CaptionedImages"]["skip_counts"] == skips
