"""Processes with unequal numbers of rows train and validate as one process does."""

import io
import tarfile

import pytest
import torch
from PIL import Image

from helpers import tiny
from helpers.broken_images import BrokenImages
from helpers.multiprocess import logged_metrics, train
from helpers.probes import ValidatedCaptions
from tilewright.data.sources.webdataset import WebDatasetSource
from tilewright.distributed import FullyShardedStrategy

# Readability of the validation rows: fewer rows than processes; a last batch of one row and a
# process with broken rows only.
VALIDATIONS = {"one row": [True], "some rows": [False, True, False, False, True]}


@pytest.mark.parametrize(
    ("stage", "validation", "strategy"),
    [
        ("dvae", "some rows", "ddp"),
        ("ranker", "some rows", "ddp"),
        ("prior", "some rows", FullyShardedStrategy),
        ("prior", "one row", FullyShardedStrategy),
    ],
)
def test_skipped_rows_change_nothing_for_two_processes(stage, validation, strategy, tmp_path):
    arguments = {"steps": 20, "noise": False, "source": BrokenImages(VALIDATIONS[validation])}
    train(stage, tmp_path / "1", 1, **arguments)
    train(stage, tmp_path / "2", 2, strategy, **arguments)
    expected, actual = (logged_metrics(tmp_path / processes) for processes in "12")
    assert {step for step, name in expected if name == "validation/loss"} >= {6, 13}
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        assert actual[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def tar(path, rows):
    with tarfile.open(path, "w") as archive:
        for index, is_readable in rows:
            file = io.BytesIO(b"" if is_readable else b"no image")
            if is_readable:
                Image.effect_noise((tiny.SIZE, tiny.SIZE), 9).convert("RGB").save(file, "PNG")
            for extension, data in (("png", file.getvalue()), ("txt", b"number %d" % index)):
                info = tarfile.TarInfo(f"{index:03}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(
    ("shards", "strategy", "workers"),
    [
        ([[True]], "ddp", 1),
        ([[True] * 9, [False, True]], FullyShardedStrategy, 0),
        ([[False] * 3, [True] * 3], FullyShardedStrategy, 0),
    ],
    ids=["one row for two workers", "9 rows and 1", "no readable row and 3"],
)
def test_each_streaming_row_is_validated_once(shards, strategy, workers, tmp_path):
    tar(tmp_path / "train-0.tar", [(index, True) for index in range(8)])
    expected, index = [], 100
    for number, shard in enumerate(shards):
        rows = list(enumerate(shard, index))
        tar(tmp_path / f"val-{number}.tar", rows)
        expected += [f"number {index}" for index, is_readable in rows if is_readable]
        index += len(shard)
    source = WebDatasetSource(str(tmp_path), streaming=True)
    arguments = {"source": source, "workers": workers, "extra_callbacks": [ValidatedCaptions()]}
    train("dvae", tmp_path / "run", 2, strategy, steps=7, **arguments)
    saved = [torch.load(tmp_path / "run" / f"{rank}.validated") for rank in (0, 1)]
    assert sorted(saved[0] + saved[1]) == sorted(expected)
    assert any(name == "validation/loss" for _, name in logged_metrics(tmp_path / "run"))
