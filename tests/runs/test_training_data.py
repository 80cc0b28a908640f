"""Identity of the data of runs: which settings decide, and which do not."""

import pytest
from omegaconf import OmegaConf

from tilewright.runs import TrainingData

CAPTIONS = {"caption_column": None, "encoding": None}
FOLDER = {"_target_": "FolderSource", "path": "/a", **CAPTIONS, "seed": 0}


def data(**changes):
    return TrainingData("folder", {**FOLDER, **changes})


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"path": "/b"}, "data.source.path=/b"),
        ({"path": ["/a", "/b"]}, "data.source.path=['/a', '/b']"),
        ({"_target_": "HubSource"}, "data=folder"),
        ({"seed": 7}, None),
        ({"streaming": True}, None),
        ({"caption_column": "text"}, None),
        ({"encoding": "cp1251"}, None),
        ({"root": "/data"}, None),
        ({"path": "???"}, None),
    ],
)
def test_text_settings_of_the_source_decide(changes, difference):
    assert data().difference(data(**changes)) == difference


def test_equal_paths_may_be_written_differently(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    absolute = data(path=str(tmp_path / "images"))
    assert absolute.difference(data(path="images")) is None
    assert absolute.difference(data(path="./images/../images/")) is None


def test_the_name_decides_where_settings_are_unknown():
    model = TrainingData.from_run(OmegaConf.create({"choices": {"data": "folder"}}))
    assert model.difference(data(path="/b")) is None
    assert model.difference(TrainingData("shapes", {"_target_": "ShapesSource"})) == "data=shapes"


def test_saved_settings_are_not_interpolated(monkeypatch):
    monkeypatch.setenv("SECRET", "private")
    saved = OmegaConf.create({"data": {"source": {"path": "${oc.env:SECRET}"}}})
    assert TrainingData.from_run(saved).source == {"path": "${oc.env:SECRET}"}
